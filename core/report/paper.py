"""Pages of A4 that are filled from top to bottom; whatever does not fit goes on the next one."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from ... import __version__
from .html import write_bytes
from .text import fit, plain, width, wrap

# Everything below is in inches, from the top left corner.
PAGE_WIDTH, PAGE_HEIGHT = 8.27, 11.69
LEFT, TOP, BOTTOM = 0.6, 0.6, 0.75
TEXT_WIDTH = PAGE_WIDTH - 2 * LEFT
TEXT_SIZE, SMALL = 9.0, 8.0
# Distance of the lines of a text of one point.
LEADING = 1.35 / 72
FACT_WIDTH, CELL_GAP = 1.35, 0.15
PICTURE_DOTS_PER_INCH = 200
NOTE_COLOURS = {"good": ("#e8f1e4", "#6f9e5c"), "note": ("#fdf1dc", "#d9a441"), "bad": ("#fbe4e1", "#c0503f")}


class Paper:
    """A report in the making.

    Parameters
    ----------
    headline
        Set on top of the first page, and at the foot of all.
    """

    def __init__(self, headline: str) -> None:
        self.pages: list[Figure] = []
        self._headline = headline
        self._y = 0.0
        self._new_page()
        self.heading(headline, 15.0)

    def heading(self, text: str, size: float = 11.5, above: float = 0.6) -> None:
        """Write a heading; on a page that has room for `above` inches below it as well."""
        self._y += 0.12 if self._y > TOP else 0.0
        self._make_room(0.4 + above)
        for line in wrap(text, size, TEXT_WIDTH, "bold"):
            self._write(LEFT, line, size, weight="bold")
            self._y += size * LEADING
        self._y += 0.08

    def paragraph(self, text: str, size: float = TEXT_SIZE, colour: str = "0.1") -> None:
        """Write a text over the whole width."""
        for line in wrap(text, size, TEXT_WIDTH):
            self._make_room(size * LEADING)
            self._write(LEFT, line, size, color=colour)
            self._y += size * LEADING
        self._y += 0.08

    def note(self, text: str, kind: str = "note") -> None:
        """Write a text into a box: `good`, `note` or `bad`."""
        face, edge = NOTE_COLOURS[kind]
        lines = wrap(text, TEXT_SIZE, TEXT_WIDTH - 0.3)
        height = len(lines) * TEXT_SIZE * LEADING + 0.2
        self._make_room(height)
        corner = (LEFT / PAGE_WIDTH, 1 - (self._y + height) / PAGE_HEIGHT)
        size = (TEXT_WIDTH / PAGE_WIDTH, height / PAGE_HEIGHT)
        box = Rectangle(corner, *size, facecolor=face, edgecolor=edge, linewidth=0.8)
        self.pages[-1].add_artist(box)
        self._y += 0.1
        for line in lines:
            self._write(LEFT + 0.15, line, TEXT_SIZE)
            self._y += TEXT_SIZE * LEADING
        self._y += 0.2

    def facts(self, facts: Mapping[str, str]) -> None:
        """Write names and values in two columns."""
        for name, value in facts.items():
            lines = wrap(value, SMALL, TEXT_WIDTH - FACT_WIDTH)
            for number, line in enumerate(lines):
                self._make_room(SMALL * LEADING)
                if number == 0:
                    self._write(LEFT, fit(name, SMALL, FACT_WIDTH - CELL_GAP, 0.0), SMALL, color="0.4")
                self._write(LEFT + FACT_WIDTH, line, SMALL)
                self._y += SMALL * LEADING
        self._y += 0.1

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table; its first column names the rows and gets what the others leave of the width."""
        cells = [list(header), *map(list, rows)]
        size = SMALL
        while True:
            columns = [
                max(width(plain(cell), size) for cell in column) for column in zip(*cells, strict=True)
            ]
            needed = sum(columns) + CELL_GAP * (len(columns) - 1)
            if needed <= TEXT_WIDTH or size <= 5.5:
                break
            size -= 0.5
        over = max(0.0, needed - TEXT_WIDTH)
        first = max(columns[0] - over, min(columns[0], 1.2))
        # still too wide: all others alike become narrower, and their cells are wrapped
        rest = TEXT_WIDTH - first - CELL_GAP * (len(columns) - 1)
        share = min(1.0, rest / max(sum(columns[1:]), 1e-9))
        widths = [first, *(column * share for column in columns[1:])]
        for number, row in enumerate(cells):
            wrapped = [wrap(cell, size, room * 1.001) for cell, room in zip(row, widths, strict=True)]
            depth = max(map(len, wrapped))
            self._make_room(depth * size * LEADING)
            x, colour = LEFT, "0.1" if number else "0.4"
            for lines, room in zip(wrapped, widths, strict=True):
                for below, line in enumerate(lines):
                    self._write(x, line, size, below * size * LEADING, color=colour)
                x += room + CELL_GAP
            self._y += depth * size * LEADING + 0.02
        self._y += 0.12

    def fitting(self, height: float, *, least: float, above: float) -> float:
        """Return the height of a picture below `above` inches of text: less where that saves a new page.

        It is `height`, or down to `least` where this page has the room for that.
        """
        room = PAGE_HEIGHT - BOTTOM - self._y - above
        return min(height, room) if room >= least else height

    def picture(self, height: float) -> SubFigure:
        """Return a part of the page of this height over the whole width of the text, to be drawn on."""
        self._make_room(height)
        below = PAGE_HEIGHT - self._y - height
        grid = GridSpec(
            3,
            3,
            height_ratios=[self._y, height, below],
            width_ratios=[LEFT, TEXT_WIDTH, LEFT],
            figure=self.pages[-1],
        )
        self._y += height + 0.1
        return self.pages[-1].add_subfigure(grid[1, 1])

    def figure(self, figure: Figure, caption: str) -> None:
        """Put a picture that was drawn for itself on the page, at most as wide as the text."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PICTURE_DOTS_PER_INCH)
        buffer.seek(0)
        self.image(imread(buffer), caption, width=figure.get_figwidth())

    def image(self, pixels: object, caption: str, *, width: float = TEXT_WIDTH) -> None:
        """Put an image `(y, x)` or `(y, x, colours)` on the page with its caption above."""
        y, x = pixels.shape[:2]  # type: ignore[attr-defined]
        lines = wrap(caption, TEXT_SIZE, TEXT_WIDTH)
        above = len(lines) * TEXT_SIZE * LEADING + 0.05
        most = PAGE_HEIGHT - TOP - BOTTOM - above - 0.1
        inches = min(width, TEXT_WIDTH, most * x / y)
        self._make_room(above + inches * y / x)
        self.paragraph(caption)
        part = self.picture(inches * y / x)
        panel = part.add_axes((0.0, 0.0, inches / TEXT_WIDTH, 1.0))
        panel.imshow(pixels, cmap="gray", aspect="auto")  # type: ignore[arg-type]
        panel.set_axis_off()

    def write(self, path: Path) -> Path:
        """Write the PDF, replacing an earlier one, and return its path.

        Raises
        ------
        OutputError
            When it cannot be written.
        """
        foot = fit(f"cryohush {__version__}: {self._headline}", 7.0, TEXT_WIDTH - 0.8, 0.0)
        buffer = io.BytesIO()
        with PdfPages(buffer) as pages:
            for number, page in enumerate(self.pages, 1):
                self._y = PAGE_HEIGHT - 0.45
                self._write(LEFT, foot, 7.0, page=page, color="0.5")
                here = f"{number} of {len(self.pages)}"
                self._write(PAGE_WIDTH - LEFT - width(here, 7.0), here, 7.0, page=page, color="0.5")
                pages.savefig(page)
        write_bytes(path, buffer.getvalue())
        return path

    def _new_page(self) -> None:
        self.pages.append(Figure(figsize=(PAGE_WIDTH, PAGE_HEIGHT)))
        self._y = TOP

    def _make_room(self, height: float) -> None:
        if self._y + height > PAGE_HEIGHT - BOTTOM and self._y > TOP:
            self._new_page()

    def _write(
        self, x: float, text: str, size: float, below: float = 0.0, page: Figure | None = None, **style: str
    ) -> None:
        """Write a line that is known to fit, its top at the cursor."""
        place = (x / PAGE_WIDTH, 1 - (self._y + below) / PAGE_HEIGHT)
        figure = self.pages[-1] if page is None else page
        figure.text(*place, text, fontsize=size, va="top", family="DejaVu Sans", parse_math=False, **style)  # type: ignore[arg-type]
