"""The gain of denoising on data from EMPIAR, from deposited files to the table, on your own machine.

Nothing is downloaded: fetch an entry with the archive's own means (Aspera, Globus, rsync), then

    python deposits.py list
    python deposits.py find 10028 FOLDER
    python deposits.py check FOLDER --sums 10028.sha256
    python deposits.py poses --particles shiny.star --symmetry C1 --output OUT [--topaz-python PYTHON]
    python deposits.py frames MOVIES --pixel-size A --output SESSION [--gain GAIN.mrc] [--skip 0] [--bin 1]

`find` looks for the files of an entry (`deposits.yaml`) in the folder where you put them, and says what to
run.

`check` writes the SHA-256 of every file, or compares with what an earlier run (or another laboratory) wrote:
figures belong to files.

`poses` needs particles with deposited or refined poses. At most `--most` of them are brought to `--box`
pixels and denoised each way. From the raw images of either half set a map is made and projected, through the
CTF, in the poses of the other half: an image of the same particle without this one's noise. As in
stack_context.py the gain is the ratio of the correlations of denoised and raw image with it, in bands of
Fourier rings, which no low-pass filter changes. The poses were found on these images, so that their noise may
have a small part in them; in that raw and denoised images are treated alike.

`frames` sums movies without alignment: one frame by itself, and all others, as `*_frame.mrc` and `*_rest.mrc`
with tables, which stack_context.py, micrograph_pairs.py and independent_pairs.py take. Run CTF estimation on
`*_rest.mrc` (RELION's or any other) before `stack_context.py cut`.

Writes deposits.json and deposits.md to OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
import yaml
from direct_inversion import Reconstruction
from numpy.typing import NDArray
from pairs import read_particles
from projection_matching import Optics, phases
from stack_context import markdown
from torch import Tensor
from user_tasks import LOW_PASS, RAW, UNTRAINED, denoised_by_each, write_particles

from cryohush.core.errors import InputError
from cryohush.core.imaging.ctf import ctf_parameters_of
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.imaging.poses import poses_of
from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.resample import fourier_resample
from cryohush.core.imaging.symmetry import symmetry_operators
from cryohush.core.io.particles import ParticleSet
from cryohush.core.io.star import write_tables
from cryohush.core.metrics.gain import RingGain, spectra

MOVIE_SUFFIXES = (".mrc", ".mrcs", ".tif", ".tiff")
BLOCK_BYTES = 1 << 24


def main() -> None:
    parser = argparse.ArgumentParser(description="The gain of denoising on data from EMPIAR.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="entries, and where their files are")
    find = commands.add_parser("find", help="whether an entry's files are there, and what to run on them")
    find.add_argument("entry", choices=entries(), help="number of the entry")
    find.add_argument("folder", type=Path, help="where its files are")
    check = commands.add_parser("check", help="SHA-256 of all files of a folder: write, or compare")
    check.add_argument("folder", type=Path)
    check.add_argument("--sums", type=Path, required=True, help="written if it is not there")
    poses = commands.add_parser("poses", help="gain judged by the map of the other half set")
    poses.add_argument("--particles", dest="table", type=Path, required=True, help="table with poses")
    poses.add_argument("--symmetry", default="C1", help="of the particle, RELION's name")
    poses.add_argument("--most", type=int, default=4000, help="particles (default: 4000, the first ones)")
    poses.add_argument("--box", type=int, default=128, help="pixels that boxes are brought to (default: 128)")
    poses.add_argument(
        "--diameter", type=float, help="of the particle, Å (default: three quarters of the box)"
    )
    poses.add_argument("--dark", action="store_true", help="protein is dark in these particles")
    poses.add_argument("--model", default="general")
    poses.add_argument("--topaz-python", help="python of an environment with topaz-em 0.3.20")
    poses.set_defaults(methods=UNTRAINED)
    poses.add_argument("--threads", type=int, default=torch.get_num_threads())
    poses.add_argument("--output", type=Path, required=True)
    frames = commands.add_parser("frames", help="one frame and the sum of the others of each movie")
    frames.add_argument("movies", type=Path, help="folder of .mrc, .mrcs or .tif movies")
    frames.add_argument("--pixel-size", type=float, required=True, help="of the movies, Å")
    frames.add_argument("--gain", type=Path, help="gain reference that frames are multiplied by (.mrc)")
    frames.add_argument("--frame", type=int, default=-1, help="the one by itself (default: -1, the last)")
    frames.add_argument("--skip", type=int, default=0, help="first frames that are left out (default: 0)")
    frames.add_argument("--bin", type=int, default=1, help="pixels to average along a side (default: 1)")
    frames.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        {
            "list": show_list,
            "find": find_files,
            "check": check_sums,
            "poses": judge_by_poses,
            "frames": split_movies,
        }[arguments.command](arguments)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


ARCHIVE = "https://ftp.ebi.ac.uk/empiar/world_availability"


def entries() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("deposits.yaml").read_text(encoding="utf-8")
    )
    return found


def show_list(arguments: argparse.Namespace) -> None:
    for name, entry in entries().items():
        print(f"EMPIAR-{name}: {entry['specimen']}, {entry['symmetry']}; {entry['holds']}")
        print(f"  {ARCHIVE}/{name}/data/  {', '.join(entry['files'])}")


# --- find


def find_files(arguments: argparse.Namespace) -> None:
    entry, folder = entries()[arguments.entry], arguments.folder
    for pattern, least in entry["files"].items():
        found = sorted(folder.glob(pattern))
        if len(found) < least:
            where = f"{ARCHIVE}/{arguments.entry}/data/"
            raise SystemExit(
                f"{folder}: {len(found)} of at least {least} files {pattern}; they are at {where}"
            )
        size = entry.get("bytes", {}).get(pattern)
        wrong = [path for path in found if size is not None and path.stat().st_size != size]
        if wrong:
            raise SystemExit(f"{wrong[0]}: {wrong[0].stat().st_size} bytes, expected {size}: fetch it again")
        print(f"{pattern}: {len(found)} files")
    if "note" in entry:
        print(f"note: {entry['note']}")
    tables = sorted(folder.glob(entry["table"])) if "table" in entry else []
    table = str(tables[0]) if tables else "TABLE"
    if "refine" in entry or ("table" in entry and not tables):
        print(f"first: {entry.get('refine', 'refine, for a table with poses')}")
    command = entry.get("run", f"poses --particles {table} --symmetry {entry['symmetry']} --output OUT")
    print(f"then: python deposits.py {command.replace('FOLDER', str(folder))}")


# --- check


def check_sums(arguments: argparse.Namespace) -> None:
    found = {name: sha256(arguments.folder / name) for name in sorted(files_of(arguments.folder))}
    if not arguments.sums.exists():
        arguments.sums.write_text(
            "".join(f"{value}  {name}\n" for name, value in found.items()), encoding="utf-8"
        )
        print(f"{len(found)} files; wrote {arguments.sums}")
        return
    lines = arguments.sums.read_text(encoding="utf-8").splitlines()
    known = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    wrong = sorted(name for name in known if found.get(name) != known[name])
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(known)} files are missing or differ, first {wrong[0]}")
    print(f"{len(known)} files are as in {arguments.sums}")


def files_of(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# --- poses


def judge_by_poses(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = ParticleSet.read(arguments.table)
    n = min(arguments.most, len(table))
    chosen = torch.arange(n)
    everything = read_particles(arguments.table)
    box = everything.images.shape[-1]
    pixel_size = everything.pixel_size_angstrom * box / arguments.box
    images = everything.images[:n] * (-1 if arguments.dark else 1)
    images = fourier_resample(images, arguments.box)
    radius = default_radius_px((arguments.box, arguments.box))
    if arguments.diameter:
        radius = arguments.diameter / pixel_size / 2
    images = normalise(images, radius)[0]
    optics, poses = ctf_parameters_of(table)[chosen], poses_of(table)[chosen]
    named = table.column("rlnRandomSubset", "alignments3D/split")
    half = (
        torch.arange(n) % 2 if named is None else torch.from_numpy((named[:n] == named[0]).astype(np.int64))
    )
    shifts = poses.shifts_angstrom / pixel_size
    of_both = Optics(optics, pixel_size)
    twin = projections_of_other_half(images, of_both, poses.rotations, shifts, half, arguments.symmetry)
    write_particles(
        arguments.output / "particles.star",
        images,
        pixel_size,
        optics,
        {"rlnRandomSubset": (half + 1).tolist()},
    )
    transform = partial(spectra, radius_px=radius, pixel_size_angstrom=pixel_size)
    judge = RingGain(transform(images), transform(twin))
    shown_by = denoised_by_each(arguments.output / "particles.star", arguments)
    # a filter has the gain of the raw images, 1, where it leaves anything
    rows = {
        name: [*judge.bands(transform(shown)), judge.whole(transform(shown))]
        for name, shown in shown_by.items()
        if name not in (RAW, LOW_PASS)
    }
    text = markdown(rows, n)
    (arguments.output / "deposits.md").write_text(text, encoding="utf-8")
    result = {name: [vars(gain) for gain in gains] for name, gains in rows.items()}
    (arguments.output / "deposits.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text)


def projections_of_other_half(
    images: Tensor, optics: Optics, rotations: Tensor, shifts_px: Tensor, half: Tensor, symmetry: str
) -> Tensor:
    """`(n, y, x)`: for each image the map of the other half's, seen in its pose through its CTF."""
    box = images.shape[-1]
    twin = torch.empty_like(images)
    for number in (0, 1):
        reconstruction = Reconstruction(box, symmetry=symmetry_operators(symmetry))
        for members in (half != number).nonzero().squeeze(1).split(200):
            reconstruction.add(
                images[members],
                rotations[members],
                transfer=optics[members].transfer(reconstruction.padded_px),
                shifts_px=shifts_px[members],
            )
        projector = Projector(reconstruction.volume())
        for members in (half == number).nonzero().squeeze(1).split(200):
            seen = torch.fft.rfft2(projector(rotations[members])) * optics[members].transfer(box)
            twin[members] = torch.fft.irfft2(seen * phases(shifts_px[members], box), s=(box, box))
    return twin


# --- frames


def split_movies(arguments: argparse.Namespace) -> None:
    movies = sorted(path for path in arguments.movies.iterdir() if path.suffix.lower() in MOVIE_SUFFIXES)
    if not movies:
        raise SystemExit(f"{arguments.movies}: no movie ({', '.join(MOVIE_SUFFIXES)})")
    gain = None if arguments.gain is None else mrcfile.read(arguments.gain).astype(np.float32)
    folder = arguments.output / "Micrographs"
    folder.mkdir(parents=True, exist_ok=True)
    pixel_size = arguments.pixel_size * arguments.bin
    for path in movies:
        one, rest = two_sums(read_movie(path)[arguments.skip :], arguments.frame, gain, path)
        for half, image in (("frame", one), ("rest", rest)):
            with mrcfile.new(folder / f"{path.stem}_{half}.mrc", overwrite=True) as file:
                file.set_data(binned(image, arguments.bin))
                file.voxel_size = pixel_size
        print(f"{path.name}: one frame and the others")
    for half in ("frame", "rest"):
        rows = [(f"Micrographs/{path.stem}_{half}.mrc", 1) for path in movies]
        optics = ("rlnOpticsGroupName", "rlnOpticsGroup", "rlnMicrographPixelSize")
        tables: list[Any] = [
            ("optics", optics, [("opticsGroup1", 1, pixel_size)]),
            ("micrographs", ("rlnMicrographName", "rlnOpticsGroup"), rows),
        ]
        write_tables(arguments.output / f"micrographs_{half}.star", tables)


def read_movie(path: Path) -> NDArray[np.float32]:
    """`(frames, y, x)`."""
    if path.suffix.lower() in (".tif", ".tiff"):
        from skimage.io import imread

        return np.asarray(imread(path), dtype=np.float32)
    with mrcfile.open(path, permissive=True) as file:
        return np.array(file.data, dtype=np.float32)


def two_sums(
    movie: NDArray[np.float32], frame: int, gain: NDArray[np.float32] | None, path: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One frame, and the mean of the others.

    Raises
    ------
    InputError
        It is no movie of two frames or more, or has not that frame.
    """
    if movie.ndim != 3 or len(movie) < 2 or not -len(movie) <= frame < len(movie):
        raise InputError(
            f"expected a movie of two frames or more that has frame {frame}, found {movie.shape}.", path=path
        )
    if gain is not None:
        movie = movie * gain
    one = movie[frame]
    return one, (movie.sum(0) - one) / (len(movie) - 1)


def binned(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    y, x = (side // factor * factor for side in image.shape)
    return image[:y, :x].reshape(y // factor, factor, x // factor, factor).mean((1, 3)).astype(np.float32)


if __name__ == "__main__":
    main()
