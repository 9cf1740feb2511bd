"""Nothing of MKL is called for the first time by several threads at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cryohush.core.first_calls import make_first_calls

HEADER = Path(torch.__file__).parent / "include/ATen/cpu/vml.h"

# One of each kind that starts threads which calculate, or is called by those of others.
MODULES = [
    "cryohush.core.inference.engine",
    "cryohush.core.context.contexts",
    "cryohush.core.training.frame",
    "cryohush.core.models",
    "cryohush.core.metrics.gain",
]


class Called(TorchDispatchMode):
    """Collects the names of operators and the precision of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add((func.overloadpacket.__name__, result.dtype))
        return result


@pytest.mark.skipif(not HEADER.exists(), reason="this torch comes without its headers")
def test_every_function_that_torch_leaves_to_mkl_is_called_in_both_precisions() -> None:
    names = re.findall(r"^IMPLEMENT_VML_MKL\((\w+),", HEADER.read_text(), re.MULTILINE)
    assert len(names) > 10
    with Called() as called:
        make_first_calls()
    missing = {(name, dtype) for name in names for dtype in (torch.float32, torch.float64)} - called.names
    assert not missing


def test_whatever_calculates_has_made_the_first_calls_when_it_is_imported() -> None:
    program = f"""
import importlib, sys
for module in {MODULES}:
    for name in [name for name in sys.modules if name.startswith("cryohush")]:
        del sys.modules[name]
    importlib.import_module(module)
    assert "cryohush.core.first_calls" in sys.modules, module
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
