"""Text as it is drawn: how wide it is, where its lines break, and what the font can show of it."""

from __future__ import annotations

import functools
import re

from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

FAMILY = "DejaVu Sans"
ELLIPSIS = "…"
POINTS_PER_INCH = 72.0
# A line may also break behind these: paths and hashes hold no blanks.
_BREAKS = re.compile(r"(?<=[/,;=@])")


@functools.cache
def _font(weight: str) -> FT2Font:
    return FT2Font(findfont(FontProperties(family=FAMILY, weight=weight)))


def plain(text: str) -> str:
    """Return a text on one line, with `?` for each character that the font does not have.

    File names may hold anything: line feeds, bytes that are no UTF-8, and the scripts of other languages.
    """
    line = " ".join(text.split())
    font = _font("normal")
    return "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in line)


def label(text: str) -> str:
    """Return `plain` text for those places of a figure where matplotlib sets `$` as mathematics."""
    return plain(text).replace("$", r"\$")


def width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of a text that is set in `size` points."""
    font = _font(weight)
    font.set_size(size, POINTS_PER_INCH)
    # of a text that is one blank or none the font knows no extent
    font.set_text(text or " ", 0.0)
    return float(font.get_width_height()[0]) / 64 / POINTS_PER_INCH


def fit(text: str, size: float, room: float, tail: float = 0.6) -> str:
    """Return the text, without some of its middle if it is wider than `room` inches.

    Parameters
    ----------
    tail
        Share of what is kept that is kept at the end: names of micrographs differ there.
    """
    text = plain(text)
    if width(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        behind = round(kept * tail)
        short = text[: kept - behind] + ELLIPSIS + text[len(text) - behind :]
        if width(short, size) <= room:
            return short
    return ELLIPSIS


def wrap(text: str, size: float, room: float, weight: str = "normal") -> list[str]:
    """Return a text as lines of at most `room` inches: broken at blanks, else in paths, else anywhere."""
    lines = [""]
    for word in plain(text).split(" "):
        for number, part in enumerate(_BREAKS.split(word)):
            joined = lines[-1] + (" " if number == 0 and lines[-1] else "") + part
            if width(joined, size, weight) <= room:
                lines[-1] = joined
                continue
            lines.append("")
            for letter in part:
                if width(lines[-1] + letter, size, weight) > room:
                    lines.append("")
                lines[-1] += letter
    return [line for line in lines if line] or [""]
