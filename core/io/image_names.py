"""RELION's names of images: `000001@stack` is an image of a stack, anything else is a file."""

from __future__ import annotations

from typing import AnyStr


def split_image_name(name: AnyStr) -> tuple[AnyStr, AnyStr]:
    """Return the 1-based number of an image as it is written, empty if there is none, and its file.

    The first @ separates them, and only if digits alone stand before it: folders may have an @ as well.
    """
    index, at, file = name.partition("@" if isinstance(name, str) else b"@")
    return (index, file) if at and index.isascii() and index.isdigit() else (name[:0], name)
