"""Real particles as an extraction of cryoSPARC leaves them, and a token as its login does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from double_v5 import EMAIL, TOKEN
from numpy.typing import NDArray

from cryohush.core.io.mrc import StackReader, StackWriter

PARTICLES = Path(__file__).parents[2] / "examples" / "data" / "particles.mrcs"
STACKS = ("J42/extract/exposure_0.mrc", "J42/extract/exposure_1.mrc")
N_PARTICLES = 24

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


def write_stacks(project: Path) -> None:
    with StackReader(PARTICLES) as reader:
        images = -reader.read(range(N_PARTICLES))
    for number, name in enumerate(STACKS):
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = images[number::2]
        with StackWriter(path, part.shape, pixel_size_angstrom=1.5, label="test") as writer:
            writer.write(part)


def store_token(config: Path, url: str, token: str = TOKEN, expires: str = "2099-01-01T00:00:00Z") -> Path:
    """Write what `python -m cryosparc.tools login` leaves."""
    path = config / "cryosparc-tools" / "auth.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    session = {"token": {"access_token": token, "token_type": "bearer"}, "expires": expires}
    path.write_text(json.dumps({url: {EMAIL: session}}))
    path.chmod(0o600)
    return path
