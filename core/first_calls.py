"""The first call of each vectorised function of MKL, made while there is one thread.

MKL looks for the code that suits the processor when a function is first called. Where several threads do so
at once, one of them can be given code of low accuracy for this one call: square roots that are off by up to
5e-4 of their value instead of 6e-8, without a word (pytorch issue 188792, of MKL 2024.2, which torch 2.13
still has). A batch whose background got such a standard deviation differs from the same batch of another run.

The packages that calculate call `make_first_calls` when they are imported.
"""

from __future__ import annotations

import torch

# All that torch leaves to MKL (its header ATen/cpu/vml.h).
FUNCTIONS = (
    torch.acos,
    torch.asin,
    torch.atan,
    torch.cos,
    torch.erf,
    torch.erfc,
    torch.erfinv,
    torch.exp,
    torch.log,
    torch.log10,
    torch.log2,
    torch.sin,
    torch.sqrt,
    torch.tan,
    torch.tanh,
    torch.trunc,
)


def make_first_calls() -> None:
    """Call each function once in each precision that MKL has it in."""
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for function in FUNCTIONS:
            function(half)
