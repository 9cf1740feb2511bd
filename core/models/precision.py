"""How this processor calculates: in what number formats, in how many threads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

# Instructions that multiply in bf16: of x86 processors and of ARM's.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def bf16_instructions() -> list[str]:
    """Names of the instructions for bf16 that this processor has."""
    return sorted(_BF16_FLAGS & cpu_flags())


@contextlib.contextmanager
def threads_kept(n: int | None = None) -> Iterator[None]:
    """Have PyTorch calculate in `n` threads meanwhile, if given, and in as many as before in the end."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Names of the instruction sets of this processor, as Linux lists them; empty elsewhere."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()
