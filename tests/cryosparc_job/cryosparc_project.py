"""Real particles as an extraction of cryoSPARC leaves them, and a token as its login does."""

from __future__ import annotations

import json
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from double_store import Job, Store
from double_v5 import EMAIL, TOKEN
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cryohush.core.io.mrc import StackReader, StackWriter

PARTICLES = Path(__file__).parents[2] / "examples" / "data" / "particles.mrcs"
STACKS = ("J42/extract/exposure_0.mrc", "J42/extract/exposure_1.mrc")
N_PARTICLES = 24
#: what a `.cs` table says of micrographs
MICROGRAPH_BLOB: list[Any] = [
    ("uid", "<u8"),
    ("micrograph_blob/path", "S40"),
    ("micrograph_blob/idx", "<u4"),
    ("micrograph_blob/shape", "<u4", (2,)),
    ("micrograph_blob/psize_A", "<f4"),
]

Run = Callable[..., int]


def particle_table() -> NDArray[Any]:
    """Rows of two stacks, mixed, as an extraction leaves them: protein dark, indices from 0."""
    table = np.zeros(
        N_PARTICLES,
        [
            ("uid", "<u8"),
            ("blob/path", "S40"),
            ("blob/idx", "<u4"),
            ("blob/shape", "<u4", (2,)),
            ("blob/psize_A", "<f4"),
            ("blob/sign", "<f4"),
            ("blob/import_sig", "<u8"),
            ("ctf/accel_kv", "<f4"),
            ("ctf/df1_A", "<f4"),
            ("location/micrograph_path", "S40"),
            ("location/center_x_frac", "<f4"),
        ],
    )
    rng = np.random.default_rng(3)
    order = rng.permutation(N_PARTICLES)
    table["uid"] = rng.integers(2**63, size=N_PARTICLES, dtype=np.uint64)
    table["blob/path"] = np.array(STACKS, dtype="S")[order % 2]
    table["blob/idx"] = order // 2
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = 128, 1.5, -1
    table["blob/import_sig"] = 77
    table["ctf/accel_kv"], table["ctf/df1_A"] = 300, 10000 + order
    table["location/micrograph_path"] = b"J3/motioncorrected/m.mrc"
    table["location/center_x_frac"] = rng.random(N_PARTICLES)
    return table


def write_stacks(project: Path, job: str = "J42") -> None:
    with StackReader(PARTICLES) as reader:
        images = -reader.read(range(N_PARTICLES))
    for number, name in enumerate(STACKS):
        path = project / name.replace("J42", job)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = images[number::2]
        with StackWriter(path, part.shape, pixel_size_angstrom=1.5, label="test") as writer:
            writer.write(part)


def add_particles(store: Store, name: str = "particles") -> Job:
    """Add a job with the same particles in stacks of its own."""
    table = particle_table()
    job = store.add_source("particle", table, name)
    table["blob/path"] = [path.replace(b"J42", job.uid.encode()) for path in table["blob/path"]]
    store._write(job, name, table, passed=False)
    write_stacks(store.directory, job.uid)
    return job


def add_micrographs(store: Store) -> None:
    """Add a job with two micrographs of white noise."""
    table = np.zeros(2, MICROGRAPH_BLOB)
    job = store.add_source("exposure", table, "exposures")
    table["uid"], table["micrograph_blob/psize_A"] = [5, 7], 1.5
    table["micrograph_blob/shape"] = (128, 160)
    for number in range(2):
        name = f"{job.uid}/m{number}.mrc"
        table["micrograph_blob/path"][number] = name.encode()
        noise = np.random.default_rng(number).normal(20, 3, (1, 128, 160)).astype(np.float32)
        with StackWriter(
            store.directory / name, noise.shape, pixel_size_angstrom=1.5, label="test"
        ) as writer:
            writer.write(noise)
    store._write(job, "exposures", table, passed=False)


FRAMES_PX = (120, 150)
# Row and column of the discs of each micrograph.
DISCS = [(40, 50), (80, 100), (60, 110)]


def add_half_exposures(store: Store, n_sums: int = 2) -> None:
    """Add a job with four micrographs and both sums of their frames in one file, and a job with particles."""
    fields = [("uid", "<u8")]
    for slot in ("micrograph_blob", "micrograph_blob_non_dw_AB"):
        fields += [(f"{slot}/path", "S60"), (f"{slot}/idx", "<u4"), (f"{slot}/shape", "<u4", (2,))]
        fields += [(f"{slot}/psize_A", "<f4")]
    table = np.zeros(4, fields)
    job = store.add_source("exposure", table, "micrographs")
    table["uid"] = [11, 13, 17, 19]
    y, x = np.ogrid[: FRAMES_PX[0], : FRAMES_PX[1]]
    disc = sum(((y - row) ** 2 + (x - column) ** 2 < 100).astype(np.float32) for row, column in DISCS)
    for number in range(4):
        noise = np.random.default_rng(number).normal(size=(n_sums, *FRAMES_PX))
        for slot, images in (
            ("micrograph_blob", (noise.mean(0) - disc)[None]),
            ("micrograph_blob_non_dw_AB", noise - disc),
        ):
            name = f"{job.uid}/motioncorrected/m{number}_{slot[16:] or 'dw'}.mrc"
            table[f"{slot}/path"][number] = name.encode()
            table[f"{slot}/shape"], table[f"{slot}/psize_A"] = FRAMES_PX, 1.5
            path = store.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with StackWriter(path, images.shape, pixel_size_angstrom=1.5, label="test") as writer:
                writer.write(images.astype(np.float32))
    store._write(job, "micrographs", table, passed=False)
    places = np.zeros(
        4 * len(DISCS),
        [
            ("uid", "<u8"),
            ("location/micrograph_uid", "<u8"),
            ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
        ],
    )
    picks = store.add_source("particle", places)
    places["uid"] = np.arange(len(places)) + 1000
    places["location/micrograph_uid"] = np.repeat(table["uid"], len(DISCS))
    centres = np.tile(DISCS, (4, 1))
    places["location/center_y_frac"] = centres[:, 0] / FRAMES_PX[0]
    places["location/center_x_frac"] = centres[:, 1] / FRAMES_PX[1]
    store._write(picks, "particles", places, passed=False)


N_POSED, BOX, POSED_PIXEL_SIZE = 64, 32, 4.0
_WIDTH = 7.0  # Å, sd of the Gaussians
_CENTRES = np.array([[20.0, 0, 5], [-15, 12, 0], [0, -22, 10], [6, 8, -24]])  # x, y, z, Å


def _gaussians(places: NDArray[Any], *axes: NDArray[Any]) -> NDArray[Any]:
    """Sum of Gaussians at `places` (x, y, ...) on the grid of `axes` (..., y, x)."""
    total: NDArray[Any] = sum(
        np.exp(-sum((axis - c) ** 2 for axis, c in zip(axes[::-1], place, strict=True)) / (2 * _WIDTH**2))
        for place in places
    )
    return total


def add_posed_particles(store: Store) -> None:
    """Add three jobs: particles with poses, the map that they are projections of with its halves, a mask.

    The CTF is 1 everywhere: no defocus, no aberration, amplitude contrast 1.
    """
    rng = np.random.default_rng(3)
    pose = Rotation.random(N_POSED, random_state=4)
    axis = (np.arange(BOX) - BOX // 2) * POSED_PIXEL_SIZE
    # the pose takes the image's frame to the volume's
    places = [turn.inv().apply(_CENTRES)[:, :2] for turn in pose]
    images = np.stack([_gaussians(place, axis[:, None], axis) for place in places])
    images = images + 0.3 * rng.normal(size=images.shape)
    fields = [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,))]
    fields += [("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("location/micrograph_uid", "<u8")]
    names = ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast", "phase_shift_rad")
    fields += [(f"ctf/{name}", "<f4") for name in names]
    fields += [("alignments3D/split", "<u4"), ("alignments3D/pose", "<f4", (3,))]
    fields += [("alignments3D/shift", "<f4", (2,)), ("alignments3D/psize_A", "<f4")]
    table = np.zeros(N_POSED, fields)
    job = store.add_source("particle", table)
    table["uid"], table["blob/idx"] = np.arange(N_POSED) + 100, np.arange(N_POSED)
    table["blob/path"], table["blob/shape"] = f"{job.uid}/posed.mrc".encode(), BOX
    table["blob/psize_A"] = table["alignments3D/psize_A"] = POSED_PIXEL_SIZE
    table["blob/sign"], table["location/micrograph_uid"] = -1, np.arange(N_POSED) // 8
    table["ctf/accel_kv"], table["ctf/amp_contrast"] = 300, 1
    table["alignments3D/split"], table["alignments3D/pose"] = np.arange(N_POSED) % 2, pose.as_rotvec()
    store._write(job, "particles", table, passed=False)
    with StackWriter(
        store.directory / job.uid / "posed.mrc", images.shape, pixel_size_angstrom=4.0, label="test"
    ) as writer:
        writer.write(-images.astype(np.float32))
    volume = _gaussians(_CENTRES, axis[:, None, None], axis[:, None], axis)
    _add_volumes(store, "volume", dict.fromkeys(("map", "map_half_A", "map_half_B"), volume))
    _add_volumes(store, "mask", {"mask": np.ones_like(volume)})


def _add_volumes(store: Store, kind: str, volumes: dict[str, NDArray[Any]]) -> None:
    table = np.zeros(1, [("uid", "<u8"), *((f"{name}/path", "S40") for name in volumes)])
    job = store.add_source(kind, table, kind)
    for name, volume in volumes.items():
        table[f"{name}/path"] = f"{job.uid}/{name}.mrc".encode()
        with mrcfile.new(store.directory / job.uid / f"{name}.mrc", volume.astype(np.float32)) as file:
            file.voxel_size = POSED_PIXEL_SIZE
    store._write(job, kind, table, passed=False)


def process_at_work(store: Store) -> int:
    """Wait until the child of a command, which is told to wait, is at work, and return its process."""
    give_up = time.monotonic() + 300
    while not (found := list(store.directory.glob("*/*/ready"))):
        assert time.monotonic() < give_up, "the work never began"
        time.sleep(0.01)
    return int(found[0].read_text())


def once_at_work(store: Store, action: Callable[[], object]) -> threading.Thread:
    """Do something, beside the command, as soon as its child is at work."""

    def wait() -> None:
        try:
            process_at_work(store)
        finally:
            action()  # without it the command would not end

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def scratch_of(scratch: Path) -> Path:
    """Return what stands for the project's directory: the one of the one instance."""
    (folder,) = scratch.glob("*/P3")
    return folder


def training_file(folder: Path) -> Path:
    """Write the configuration of a short training of a small network."""
    path = folder / "training.yaml"
    path.write_text(
        textwrap.dedent(
            """\
            name: tiny
            network: {name: shuffle_unet, arguments: {widths: [4, 4], blocks: [1, 1], unshuffle: 2}}
            optimisation: {steps: 2, batch_size: 4, warmup_steps: 1, precision: 32-true}
            validate_every: 4
            validation_images: 64
            """
        )
    )
    return path


def store_token(config: Path, url: str, token: str = TOKEN, expires: str = "2099-01-01T00:00:00Z") -> Path:
    """Write what `python -m cryosparc.tools login` leaves."""
    path = config / "cryosparc-tools" / "auth.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    session = {"token": {"access_token": token, "token_type": "bearer"}, "expires": expires}
    path.write_text(json.dumps({url: {EMAIL: session}}))
    path.chmod(0o600)
    return path
