"""Every command line of README, docs and --help is one that its program takes, and those on files run."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryohush.core.cli import EXAMPLES, build_parser, main
from cryohush.cryosparc_job.cli import build_parser as cryosparc_parser
from cryohush.relion_external.cli import build_parser as relion_parser

ROOT = Path(__file__).parents[1]
PROGRAMS = ("cryohush", "relion_cryohush", "cryosparc_cryohush")
# What stands before a program where another starts it.
LAUNCHERS = ("exec", "srun", "nohup", "time")
SHELL_ENDS = (">", ">>", "|", "&&", "||", ";", "&", "2>&1")
BOX_PX, N_IMAGES = 64, 12


def fenced(path: Path) -> Iterator[str]:
    """Yield the lines of the fenced blocks of a page, those that end in a backslash joined with the next."""
    for block in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def words_of(line: str) -> list[str]:
    """Return the words of a command of ours: its program first, without comments and redirections."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose, or output of a program
        return []
    while words and words[0] in ("$", *LAUNCHERS):
        words = words[1:]
    if not words or Path(words[0]).name not in PROGRAMS:
        return []
    end = next((number for number, word in enumerate(words) if word in SHELL_ENDS), len(words))
    return [Path(words[0]).name, *words[1:end]]


def documented() -> dict[str, list[str]]:
    """Return the words of each command line, by where it stands."""
    found = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for line in fenced(path):
            if words := words_of(line):
                found[f"{path.name}: {shlex.join(words)}"] = words
    for lines in EXAMPLES.values():
        for line in lines:
            found[f"--help: {line}"] = words_of(line)
    return found


COMMANDS = documented()


def test_the_pages_hold_commands_of_each_program() -> None:
    assert {words[0] for words in COMMANDS.values()} == set(PROGRAMS)
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("where", COMMANDS)
def test_each_is_understood(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = COMMANDS[where]
    # an ellipsis stands for what the reader knows
    words = [word for word in words if word not in ("…", "...")]
    parser: argparse.ArgumentParser = {
        "cryohush": build_parser,
        "relion_cryohush": relion_parser,
        "cryosparc_cryohush": cryosparc_parser,
    }[program]()
    if program == "relion_cryohush":
        # RELION itself adds the job's directory; a batch is that of `cryohush`
        if words[0] == "batch":
            parser = build_parser(program)
        else:
            words = [*words, "--o", "External/job001/"]
    try:
        parser.parse_args(words)
    except SystemExit as error:
        pytest.fail(f"{where}: {error}: {capsys.readouterr().err}")


def runnable() -> list[str]:
    """Return those commands that work on files alone and end soon."""
    kinds = ("denoise", "simulate", "extract-noise", "evaluate", "restore", "models", "completion", "train")
    return [
        where for where, (program, *words) in COMMANDS.items() if program == "cryohush" and words[0] in kinds
    ]


def write_volume(path: Path, values: np.ndarray) -> None:
    with mrcfile.new(path) as file:
        file.set_data(values.astype(np.float32))
        file.voxel_size = 2.0


def write_particles(folder: Path, table: str, stack: str, seed: int, images: np.ndarray) -> None:
    """Write a stack with noise of its own on `images`, and its table."""
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    (folder / stack).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 3, images.shape)
    with mrcfile.new(folder / stack) as file:
        file.set_data((images + noise * (seed > 0)).astype(np.float32))
        file.set_image_stack()
        file.voxel_size = 2.0
    rows = "".join(
        f"{number + 1:06d}@{stack} {100 + number}.0 50.0 mic{number // 4}.mrc 1\n"
        for number in range(len(images))
    )
    (folder / table).write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n"
        f"1 2.0 {BOX_PX}\n\ndata_particles\n\nloop_\n_rlnImageName #1\n_rlnCoordinateX #2\n"
        f"_rlnCoordinateY #3\n_rlnMicrographName #4\n_rlnOpticsGroup #5\n{rows}\n"
    )


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every name in the commands."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "examples").symlink_to(ROOT / "examples")
    rows, columns = np.ogrid[:BOX_PX, :BOX_PX]
    disc = np.hypot(rows - BOX_PX / 2, columns - BOX_PX / 2) < BOX_PX / 5
    images = np.repeat(np.where(disc, 2.0, 0.0)[None], N_IMAGES, 0)
    for number, name in enumerate(("ctf_only", "particles", "even", "Extract/job007/particles")):
        write_particles(folder, f"{name}.star", f"{name}.mrcs", number, images)
    for name in ("micrograph", "Micrographs/a", "Micrographs/b"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples/data/micrograph.mrc", folder / f"{name}.mrc")
    (folder / "CtfFind/job003").mkdir(parents=True)
    table = (
        "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n1 1.5\n\n"
        "data_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
        "Micrographs/a.mrc 1\nMicrographs/b.mrc 1\n\n"
    )
    for name in ("micrographs.star", "CtfFind/job003/micrographs_ctf.star"):
        (folder / name).write_text(table)
    (folder / "run").mkdir()
    shutil.copy(ROOT / "core/weights/general.safetensors", folder / "run/weights.safetensors")
    ball = np.linalg.norm(np.indices((32, 32, 32)) - 16.0, axis=0) < 9
    random = np.random.default_rng(5)
    for name in ("half1", "half2"):
        write_volume(folder / f"{name}.mrc", ball + random.normal(0, 0.3, ball.shape))
    write_volume(folder / "mask.mrc", ball)
    (folder / "evaluate.yaml").write_text("denoised: particles.star\nreference: ctf_only.star\n")
    (folder / "train.yaml").write_text((ROOT / "core/config/presets/noise2noise.yaml").read_text())
    cs_fields = [("uid", "<u8"), ("blob/path", "S24"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
                 ("blob/psize_A", "<f4"), ("blob/sign", "<f4")]  # fmt: skip
    rows_cs = np.zeros(N_IMAGES, cs_fields)
    rows_cs["uid"], rows_cs["blob/idx"] = np.arange(N_IMAGES) + 7, np.arange(N_IMAGES)
    rows_cs["blob/path"], rows_cs["blob/shape"] = b"particles.mrcs", BOX_PX
    rows_cs["blob/psize_A"], rows_cs["blob/sign"] = 2.0, 1
    (folder / "J42").mkdir()
    np.save(folder / "J42/particles.npy", rows_cs)
    (folder / "J42/particles.npy").rename(folder / "J42/particles.cs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["denoise", "particles.star", "--output", "Denoised", "--quiet"]) == 0
        assert main(["denoise", "J42/particles.cs", "--output", "FromCs", "--quiet"]) == 0
    (folder / "Select/job012").mkdir(parents=True)
    shutil.copy(folder / "Denoised/particles.star", folder / "Select/job012/particles.star")
    selected = np.load(folder / "FromCs/particles.cs")[3:6]
    selected["blob/path"] = [path.replace(b">", b"FromCs/") for path in selected["blob/path"].astype("S24")]
    np.save(folder / "selected.npy", selected)
    (folder / "selected.npy").rename(folder / "selected.cs")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("where", runnable())
def test_each_on_files_runs(
    where: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stand_ins)
    words = [word for word in COMMANDS[where][1:] if word not in ("…", "...")]
    if words[0] == "simulate" and "--print-config" not in words:
        words += ["--set", "n_images=4"]
    if words[0] == "train" and "--print-config" not in words:
        words.append("--print-config")  # a training takes hours
    place = None
    for flag in ("-o", "--output"):
        if flag in words:
            # each to a place of its own
            place = stand_ins / "results" / str(runnable().index(where))
            place.mkdir(parents=True, exist_ok=True)
            number = words.index(flag) + 1
            words[number] = str(place / Path(words[number]).name)
    status = main(words)
    captured = capsys.readouterr()
    assert status == 0, f"{shlex.join(words)}\n{captured.err}"
    if place is not None and words[0] != "train":
        assert any(path.is_file() for path in place.rglob("*"))
