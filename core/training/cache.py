"""What takes long to simulate and is needed again: tensors in a file that says what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..io.files import writing

_KEY = "made_from"


def kept_tensors(
    path: Path,
    made_from: Mapping[str, Any],
    files: Iterable[Path],
    make: Callable[[], dict[str, Tensor]],
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """Tensors that `path` keeps from an earlier run, or what `make` returns, which it keeps from now on.

    Parameters
    ----------
    made_from, files
        Everything that the tensors depend on: values that JSON can tell, and files by their content. What was
        made from anything else, or is damaged, is made again.
    log
        Told why.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    key = _fingerprint(made_from, files)
    if path.exists():
        try:
            with safe_open(path, framework="pt") as kept:
                if (kept.metadata() or {}).get(_KEY) == key:
                    return {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
            log(f"{path} was made for other settings: it is made again")
        except (SafetensorError, OSError):
            log(f"{path} is cut off or damaged: it is made again")
    tensors = make()
    write_tensors(path, tensors, {_KEY: key})
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, all or nothing.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with writing(path, needed) as part:
        try:
            safetensors.torch.save_file(dict(tensors), part, metadata=dict(metadata))
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _fingerprint(made_from: Mapping[str, Any], files: Iterable[Path]) -> str:
    """SHA-256 of all values, and of name and content of each file."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode())
    for path in files:
        digest.update(f"\n{path.name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
