"""`cryohush doctor`: what this machine has of what cryohush needs, and what to mend."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import __version__
from .errors import EXTRAS, missing_of

SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes
    ----------
    state
        `ok`; `note`: something optional is missing; `problem`: some command will fail.
    subject, text
        What was looked at, and what was found.
    remedy
        What to do about it.
    """

    state: Literal["ok", "note", "problem"]
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[self.state]
        remedy = f"\n{'':25}{self.remedy}" if self.remedy else ""
        return f"{mark}  {self.subject:<14}  {self.text}{remedy}"


def examine(url: str | None = None) -> Iterator[Finding]:
    """Yield what was found, from the interpreter to the hosts; `url`: of a cryoSPARC instance to reach."""
    yield from _python()
    yield from _torch()
    yield from _machine()
    yield _weights()
    yield _extras()
    yield _relion()
    yield from _cryosparc(url)
    yield from _places()


def _python() -> Iterator[Finding]:
    yield Finding("ok", "cryohush", f"{__version__}, in {Path(__file__).parent}")
    yield Finding("ok", "Python", f"{platform.python_version()}, {sys.executable}")


def _torch() -> Iterator[Finding]:
    import torch

    from .inference.gpu_driver import driver_version, why_no_gpu

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    yield Finding("ok", "torch", f"{torch.__version__}, {build}")
    driver = driver_version()
    yield Finding("ok", "NVIDIA driver", "none" if driver is None else str(driver))
    problem = why_no_gpu()
    if problem is not None:
        what, _, remedy = problem.partition(". ")
        yield Finding("problem", "GPU", f"{what}.", remedy)
    elif not torch.cuda.is_available():
        yield Finding("ok", "GPU", "none: cryohush calculates on the CPU")
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(number)
        capability = f"{card.major}.{card.minor}"
        text = f"{number}: {card.name}, {card.total_memory / 2**30:.0f} GiB, capability {capability}"
        if _is_served(card.major):
            yield Finding("ok", "GPU", text)
        else:
            yield Finding(
                "problem",
                "GPU",
                f"{text}: this torch has no programs for it",
                "Install a torch for an older CUDA (docs/install.md), or add --device cpu.",
            )


def _is_served(major: int) -> bool:
    """Whether torch has programs for some card of the same generation, which then run on this one as well."""
    import torch

    return any(re.fullmatch(rf"(sm|compute)_{major}\d", name) for name in torch.cuda.get_arch_list())


def _machine() -> Iterator[Finding]:
    from .inference.devices import available_threads

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{available_threads()} threads for this process, {memory:.0f} GiB of memory"
    if memory < 4:
        yield Finding("note", "machine", text, "A micrograph of 11,520 x 8,184 px takes 4 GiB.")
    else:
        yield Finding("ok", "machine", text)


def _weights() -> Finding:
    from .errors import ModelError
    from .models import ALL_NETWORKS
    from .models.weights import list_models, load_model

    names = list(list_models())
    try:
        for name in names:
            load_model(name, ALL_NETWORKS)
    except ModelError as error:
        return Finding("problem", "models", str(error), "Install cryohush again.")
    return Finding("ok", "models", f"{', '.join(names)}: complete, by their SHA-256")


def _extras() -> Finding:
    missing = {extra: missing_of(extra) for extra in EXTRAS}
    lacking = [f"{extra} ({', '.join(names)})" for extra, names in missing.items() if names]
    if not lacking:
        return Finding("ok", "extras", f"all: {', '.join(EXTRAS)}")
    return Finding(
        "note",
        "extras",
        f"not installed: {'; '.join(lacking)}",
        f"For these commands: {Path(sys.executable).name} -m pip install the packages in brackets.",
    )


def _relion() -> Finding:
    program = shutil.which("relion_refine")
    if program is None:
        return Finding("note", "RELION", "not on the PATH; needed for External jobs and batches only")
    try:
        told = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("note", "RELION", f"{program} does not tell its version: {error}")
    found = re.search(r"\d+\.\d+[\w.-]*", told)
    version = found[0] if found else "of an unknown version"
    ours = shutil.which("relion_cryohush")
    if ours is None:
        here = Path(sys.executable).with_name("relion_cryohush")
        return Finding(
            "problem",
            "RELION",
            f"{version}, but relion_cryohush is not on the PATH: an External job would not start",
            f"Give the whole path as the job's executable, {here}, or link it into a folder on the PATH.",
        )
    return Finding("ok", "RELION", f"{version}, {program}; relion_cryohush is {ours}")


def _cryosparc(url: str | None) -> Iterator[Finding]:
    if not missing_of("cryosparc"):
        version = importlib.metadata.version("cryosparc-tools")
        yield Finding(
            "ok", "cryoSPARC", f"cryosparc-tools {version}, for instances {version.rsplit('.', 1)[0]}.*"
        )
    elif url is not None:
        yield Finding(
            "problem",
            "cryoSPARC",
            "cryosparc-tools is not installed",
            "pip install 'cryosparc-tools~=5.0.0', or ~=4.7.0: its version is the instance's.",
        )
    if url is None:
        return
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            yield Finding("ok", "instance", f"{url} answers ({answer.status})")
    except urllib.error.HTTPError as error:
        with error:
            yield Finding("ok", "instance", f"{url} answers ({error.code})")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Finding(
            "problem",
            "instance",
            f"{url} cannot be reached: {reason}",
            "Is it the address in your browser, and is this machine in the same network?",
        )


def _places() -> Iterator[Finding]:
    yield _writable("working folder", Path.cwd(), "Give --output a folder that you may write to.")
    yield _writable("temporary", Path(tempfile.gettempdir()), "Set TMPDIR to a folder that you may write to.")


def _writable(subject: str, folder: Path, remedy: str) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{folder}, {free:.0f} GiB free"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("note", subject, f"{folder} cannot be written to", remedy)
    if free < 1:
        return Finding("note", subject, text, remedy)
    return Finding("ok", subject, text)
