"""RELION's names of images: `000001@stack` is an image of a stack, anything else is a file."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import AnyStr


def split_image_name(name: AnyStr) -> tuple[AnyStr, AnyStr]:
    """Return the 1-based number of an image as it is written, empty if there is none, and its file.

    The first @ separates them, and only if digits alone stand before it: folders may have an @ as well.
    """
    index, at, file = name.partition("@" if isinstance(name, str) else b"@")
    return (index, file) if at and index.isascii() and index.isdigit() else (name[:0], name)


def same_file(name: str) -> str:
    """Return what two spellings of a file's name (`x.mrcs`, `./x.mrcs`) share.

    `..` stays: beyond a link it leads elsewhere than the text says.
    """
    return str(PurePosixPath(name))


def without_dots(path: str) -> str:
    """Return a path without `.` and `..`; beyond a link `..` leads where the link's target says."""
    text = os.path.normpath(path)
    if ".." not in path:
        return text
    real = os.path.realpath(path)
    return text if os.path.realpath(text) == real else real
