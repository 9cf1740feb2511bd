"""The NVIDIA driver of this machine, and why torch may not see its GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_VERSION_FILE = Path("/proc/driver/nvidia/version")
# The oldest driver that runs programs built for a major version of CUDA
# (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1).
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}
# Package indexes of torch's CUDA builds, newest first, with the oldest driver that we send there. A driver of
# 525 runs cu128 as well, but was released before the cards that cu126 lacks (Blackwell).
TORCH_INDEXES = {"cu130": 580, "cu128": 570, "cu126": 525}


def driver_version(file: Path = _VERSION_FILE) -> int | None:
    """Return the major version of the loaded NVIDIA driver, such as 535; None where there is none."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3})\.\d+", text)
    return int(found[1]) if found else None


def why_no_gpu(file: Path = _VERSION_FILE) -> str | None:
    """Return why torch sees no GPU although there is a driver for one, and what to do; None if all is well.

    Without a driver the CPU is all there is, which needs no explanation.
    """
    driver = driver_version(file)
    if driver is None or torch.cuda.is_available():
        return None
    built_for = torch.version.cuda
    if built_for is None:
        return (
            f"this machine has an NVIDIA driver ({driver}), but the installed torch {torch.__version__} was "
            f"built for the CPU. {_install(driver)}"
        )
    needed = OLDEST_DRIVERS.get(int(built_for.split(".")[0]), 0)
    if driver < needed:
        return (
            f"the NVIDIA driver {driver} is too old for the installed torch {torch.__version__} (CUDA "
            f"{built_for}, driver {needed} or newer). {_install(driver)}"
        )
    return (
        f"this machine has an NVIDIA driver ({driver}), but torch {torch.__version__} finds no GPU: is "
        "CUDA_VISIBLE_DEVICES empty, or was no GPU asked for in the queue? nvidia-smi lists those there are."
    )


def torch_index(driver: int) -> str:
    """Return the name of torch's newest package index that a driver can run, `cpu` if there is none."""
    return next((name for name, oldest in TORCH_INDEXES.items() if driver >= oldest), "cpu")


def _install(driver: int) -> str:
    index = torch_index(driver)
    if index == "cpu":
        return "No current torch runs with it: ask for a newer driver. Until then the CPU is used."
    return (
        "For the GPU: pip install --force-reinstall torch --index-url "
        f"https://download.pytorch.org/whl/{index}"
    )
