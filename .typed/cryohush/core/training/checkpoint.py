"""All that a killed run needs to go on to the same result, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from ..errors import CryohushError
from ..io.files import part_path, rename_complete


def save_checkpoint(path: Path, config: BaseModel, step: int, parts: dict[str, Any]) -> None:
    """Write the step and the state of each part (anything with `state_dict`), all or nothing.

    Batches and noise are functions of seed and step, so that no state of a random generator is needed.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"config": config.model_dump_json(), "step": step, **state}, part_path(path))
    rename_complete(part_path(path), path)


def load_checkpoint(path: Path, config: BaseModel, parts: dict[str, Any]) -> int:
    """Bring each part back to its state and return the step.

    Raises
    ------
    CryohushError
        The file belongs to another configuration.
    """
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["config"] != config.model_dump_json():
        raise CryohushError(f"{path} belongs to another configuration: choose another --output")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
