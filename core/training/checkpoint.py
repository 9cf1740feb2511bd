"""All that an interrupted run needs to go on to the same result, in one file."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from ..errors import CryohushError, InputError
from ..io.files import writing

# Raised when what a checkpoint holds changes.
_FORMAT = 2
# What torch.load and load_state_dict raise for files that are cut off, damaged or something else.
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)


def save_checkpoint(path: Path, config: BaseModel, step: int, parts: dict[str, Any]) -> None:
    """Write the step and the state of each part (anything with `state_dict`), all or nothing.

    Batches and noise are functions of seed and step, so that no state of a random generator is needed.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    data = io.BytesIO()  # torch's own writer tells of a full disk in words that nobody understands
    torch.save({"format": _FORMAT, "config": config.model_dump_json(), "step": step, **state}, data)
    with writing(path, data.tell()) as part:
        part.write_bytes(data.getbuffer())


def load_checkpoint(path: Path, config: BaseModel, parts: dict[str, Any]) -> int:
    """Bring each part back to its state and return the step.

    Raises
    ------
    CryohushError
        The file belongs to another configuration or another version of cryohush.
    InputError
        It cannot be read.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        its_config, its_format = state["config"], state.get("format", 1)
    except (*_UNREADABLE, pickle.UnpicklingError) as error:
        raise _damaged(path) from error
    if its_format != _FORMAT:
        raise CryohushError(
            f"{path} was written by another version of cryohush: finish this training with that version, or "
            "choose another --output."
        )
    if its_config != config.model_dump_json():
        raise CryohushError(f"{path} belongs to another configuration: choose another --output")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])
    except _UNREADABLE as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(
        "the saved state of this training is cut off or damaged.",
        path=path,
        remedy="Delete it, and --resume begins with the first step again.",
    )
