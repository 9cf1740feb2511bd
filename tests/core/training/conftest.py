from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryohush.core.config.training import TrainingConfig


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """A tiny run as YAML would give it: two lumps of atoms to train on and one held out, 32 px boxes."""
    folder = tmp_path / "structures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two", "kept"):
        atoms = rng.normal(scale=12, size=(150, 3))
        lines = [
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
            for i, (x, y, z) in enumerate(atoms, 1)
        ]
        (folder / f"{name}.pdb").write_text("\n".join([*lines, "END", ""]))
    table = np.array([[32, 4, 2e4, 1.9e4, 20, 300, 2.7, 0.1, 0]], dtype=np.float32)
    np.save(tmp_path / "ctf.npy", table)
    return {
        "name": "tiny",
        "network": {
            "name": "shuffle_unet",
            "arguments": {"widths": [8, 16], "blocks": [1, 1], "unshuffle": 2},
        },
        "data": {
            "structures": folder,
            "held_out": ["kept"],
            "ctf_tables": [tmp_path / "ctf.npy"],
            "box_px": 32,
            "volumes_per_structure": 1,
            "projections_per_volume": 8,
            "imaging": {"snr": [0.2, 1.0]},
        },
        "optimisation": {"steps": 12, "batch_size": 8, "warmup_steps": 2, "precision": "32-true"},
        "validate_every": 4,
        "validation_images": 64,
    }


@pytest.fixture
def config(tiny: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate(tiny)
