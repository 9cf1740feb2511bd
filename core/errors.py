"""Exceptions of cryohush.

::

    CryohushError                 whatever ends a command with one clear message
    ├── ConfigurationError        a configuration key or command-line value that cannot be used
    ├── InputError                something wrong with a user's file
    │   ├── MrcError              an MRC stack that is missing, truncated or of a kind that is not supported
    │   ├── StarError             a STAR file that cannot be parsed or lacks what is needed
    │   ├── TableChanged          a table that was written anew, with other rows, while it was in use
    │   ├── CsError               a cryoSPARC .cs file that cannot be read or lacks what is needed
    │   └── ImageError            pixel values that cannot be denoised (NaN, Inf, constant image)
    ├── OutputError               the output cannot be written (occupied directory, full disk)
    ├── ModelError                an unknown model, or weights that are not what the manifest says
    ├── DeviceError               a device that was asked for and is not there, or that fails
    ├── HostError                 the server of the suite is not there, refuses, or lacks what was named
    └── Aborted                   the user or the host asked the job to stop
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def one_line(text: str) -> str:
    """Return text with its line breaks and control characters spelt, as in `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class CryohushError(Exception):
    """Base class: its text, always one line, is what the user reads, without a traceback."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigurationError(CryohushError):
    """A configuration key or command-line value that cannot be used."""


class InputError(CryohushError):
    """Something wrong with a user's file.

    Parameters
    ----------
    problem
        What was expected and what was found.
    path
        The file.
    line
        1-based line of a text file.
    image
        1-based index of an image in a stack.
    remedy
        What the user can do.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        image: int | None = None,
        remedy: str | None = None,
    ) -> None:
        where = "" if path is None else str(path)
        if line is not None:
            where += f", line {line}"
        if image is not None:
            where += f", image {image}"
        where = where.removeprefix(", ")
        text = f"{where}: {problem}" if where else problem
        if remedy:
            text += f" {remedy}"
        super().__init__(text)
        self.problem, self.path, self.line, self.image, self.remedy = problem, path, line, image, remedy


class MrcError(InputError):
    """An MRC stack that is missing, truncated or of a kind that is not supported."""


class StarError(InputError):
    """A STAR file that cannot be parsed or lacks what is needed."""


class TableChanged(InputError):
    """A table that was written anew while it was in use, none of whose images has changed."""


class TooFewBlocks(InputError):
    """Micrographs in which fewer blocks of noise were found than are needed.

    Attributes
    ----------
    smaller_px
        A window that may find more, where the user has not said how large it has to be.
    """

    smaller_px: int | None = None


class CsError(InputError):
    """A cryoSPARC .cs file that cannot be read or lacks what is needed."""


class ImageError(InputError):
    """Pixel values that cannot be denoised: NaN, Inf or a constant image."""


# So many files are named; whoever mends these sees the next ones.
_NAMED = 20


def several(errors: Sequence[InputError], of: int, what: str) -> InputError:
    """Return one error that names all files that cannot be used, up to twenty of them.

    Parameters
    ----------
    errors
        At least one.
    of, what
        Out of how many of what: `12`, `micrographs`.
    """
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    more = f" And {len(errors) - _NAMED} more." if len(errors) > _NAMED else ""
    return kind(
        f"{len(errors)} of {of} {what} cannot be used. {' '.join(map(str, errors[:_NAMED]))}{more}",
    )


class OutputError(CryohushError):
    """The output cannot be written: an occupied directory, a full disk."""


class ModelError(CryohushError):
    """An unknown model, or weights that are not what their manifest says."""


class DeviceError(CryohushError):
    """A device that was asked for and is not there, or that fails."""


class HostError(CryohushError):
    """The server of the suite is not there, refuses, or lacks what was named."""


class Aborted(CryohushError):
    """The user or the host asked the job to stop."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, of Python or of torch, means that there was not enough memory."""
    # torch need not be there; it has an error of its own for GPUs and only a text for the CPU
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


# Packages whose name to install is not that to import; of the others it is the same with hyphens.
_DISTRIBUTIONS = {
    "cryosparc": "cryosparc-tools",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorboardX": "tensorboardX",
}
#: What each extra installs, by the names for pip.
EXTRAS = {
    "train": ("gemmi", "lightning-fabric", "tensorboardX"),
    "evaluate": ("scikit-image", "scikit-learn"),
    "batch": ("distributed", "dask-jobqueue", "cryptography"),
    "cryosparc": ("cryosparc-tools",),
}


def missing_of(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    import importlib.metadata

    def is_installed(distribution: str) -> bool:
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    return [name for name in EXTRAS[extra] if not is_installed(name)]


def missing_package(error: ModuleNotFoundError) -> ConfigurationError:
    """Return what to tell the user where an optional package is not installed.

    Raises
    ------
    ModuleNotFoundError
        Again, if what is missing is a part of cryohush itself.
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", "cryohush"):
        raise error
    package = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
    # whoever lacks one of an extra would be told of the next one next
    packages = list(dict.fromkeys([package, *(missing_of(extra) if extra else ())]))
    names, several = ", ".join(packages), len(packages) > 1
    what = f"packages {names}, which are" if several else f"package {names}, which is"
    return ConfigurationError(
        f"this needs the Python {what} not installed: {sys.executable} -m pip install {' '.join(packages)}"
    )
