"""Text as it is drawn: how wide it is, where its lines break, and what the font can show of it."""

from __future__ import annotations

import bisect
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


@functools.cache
def _advance(letter: str, weight: str) -> float:
    """Width of a letter in the size of one point, in points."""
    font = _font(weight)
    font.set_size(1.0, POINTS_PER_INCH)
    # in 1/65536 of a point
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536


def width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of a text that is set in `size` points; kerning would make it a little narrower."""
    return sum(_advance(letter, weight) for letter in text) * size / POINTS_PER_INCH


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

    def short(kept: int) -> str:
        behind = round(kept * tail)
        return text[: kept - behind] + ELLIPSIS + text[len(text) - behind :]

    most = bisect.bisect_left(range(len(text)), True, key=lambda kept: width(short(kept), size) > room)
    return short(max(most - 1, 0))


def wrap(text: str, size: float, room: float, weight: str = "normal") -> list[str]:
    """Return a text as lines of at most `room` inches: broken at blanks, else in paths, else anywhere."""
    lines, used, blank = [""], 0.0, width(" ", size, weight)
    for word in plain(text).split(" "):
        for number, part in enumerate(_BREAKS.split(word)):
            gap = blank if number == 0 and lines[-1] else 0.0
            needed = width(part, size, weight)
            if used + gap + needed <= room:
                lines[-1] += (" " if gap else "") + part
                used += gap + needed
                continue
            lines.append("")
            used = 0.0
            for letter in part:
                needed = width(letter, size, weight)
                if used + needed > room and lines[-1]:
                    lines.append("")
                    used = 0.0
                lines[-1] += letter
                used += needed
    return [line for line in lines if line] or [""]
