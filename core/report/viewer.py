"""`view.html`: images before and after, to look through in a browser; one file, and no network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from ..io.image_names import split_image_name
from ..metrics.gain import Verdict
from ..spread import evenly_spread
from .figures import Kind, bar_length, comparison_rows, limits_of
from .html import write_bytes
from .text import plain
from .verdict import Filtered, kept_shares

TEMPLATE = Path(__file__).with_name("view.html")
# So many pixels of each layer keep the file near ten megabytes; noise is what cannot be compressed.
MAX_PIXELS, MIN_IMAGES = 8_400_000, 3
SMOOTH_QUALITY, NOISE_QUALITY = 88, 75
# Where the colours of the expected error end, in standard deviations of the denoised image.
LARGEST_ERROR = 2.0
# What is shown as a percentage.
SHARES = ("kept",)
# In the list, and where there is room.
SCORES = {
    "kept": ("kept", "variance kept"),
    "alike": ("like low-pass", "correlation with low-pass"),
    "error": ("error", "expected error in sd of the denoised image"),
}
SORTS = (
    ("order", "row in the input", None, False),
    ("most kept", "most variance kept", "kept", True),
    ("least kept", "least variance kept", "kept", False),
    ("unlike", "least like the low-pass", "alike", False),
    ("most error", "largest expected error", "error", True),
)


def write_viewer(
    path: Path,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
    headline: str,
    notes: Sequence[Verdict],
    kind: Kind = "particles",
    total: int | None = None,
    filtered: Filtered | None = None,
    error: NDArray[np.float32] | None = None,
) -> Path:
    """Write the page, replacing an earlier one, and return its path.

    Parameters
    ----------
    raw, denoised
        `(n, y, x)`, the same images. Of many large ones some are shown, evenly spread.
    titles
        One per image: `number@stack` of a particle, the name of a micrograph.
    pixel_size_angstrom
        For the scale bar, which is in pixels when this is None.
    headline, notes
        What stands above the images; of the notes, the last behind a click.
    kind
        What the images are.
    total
        Images that these were chosen from, if there are more.
    filtered
        The raw images after the plain low-pass; with it what it leaves of the residual. Two more layers.
    error
        `(n, y, x)` expected standard error of each denoised pixel; another layer, in standard deviations of
        the denoised image.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    y, x = raw.shape[-2:]
    limit = max(MIN_IMAGES, MAX_PIXELS // max(y * x, 1))
    chosen = evenly_spread(len(raw), limit)
    scores = {"kept": kept_shares(raw, denoised)}
    if filtered is not None:
        scores["alike"] = _correlations(filtered.images, denoised)
    relative = None
    if error is not None:
        spread = denoised.std(axis=(1, 2), dtype=np.float64)
        relative = error / np.where(spread > 0, spread, 1.0)[:, None, None]
        scores["error"] = np.sqrt((relative**2).mean(axis=(1, 2)))
    rows = comparison_rows(raw, denoised, filtered, kind)
    images: list[dict[str, Any]] = []
    for number in chosen.tolist():
        shown = {
            name: _picture(row.images[number], limits_of(row, number), is_noise=name in ("raw", "residual"))
            for name, row in rows.items()
        }
        if relative is not None:
            shown["error"] = _picture(relative[number], (0.0, LARGEST_ERROR), "viridis")
        values = {name: round(float(score[number]), 4) for name, score in scores.items()}
        place, name = split_image_name(titles[number])
        title = [f"no. {place}" if place else "", plain(name)]
        images.append({"number": title[0], "name": title[1], "layers": shown, "scores": values})
    length = bar_length(x * (pixel_size_angstrom or 1.0))
    unit = "Å" if pixel_size_angstrom else "px"
    labels = {name: " ".join(row.label.split()) for name, row in rows.items()}
    if relative is not None:
        labels["error"] = f"expected error, dark 0 to yellow {LARGEST_ERROR:g} sd"
    data = {
        "headline": plain(headline),
        "notes": [{"text": plain(note.text), "kind": note.judgement} for note in notes],
        "shown": _what_is_shown(len(chosen), total or len(raw), (y, x), pixel_size_angstrom, kind),
        "width": x,
        "height": y,
        "bar": {"share": length / (pixel_size_angstrom or 1.0) / max(x, 1), "label": f"{length} {unit}"},
        "layers": [{"name": name, "label": text} for name, text in labels.items()],
        "scores": [
            {"name": name, "short": SCORES[name][0], "label": SCORES[name][1], "is_share": name in SHARES}
            for name in scores
        ],
        "sorts": [
            {"name": name, "label": text, "score": score, "descending": descending}
            for name, text, score, descending in SORTS
            if score is None or score in scores
        ],
        "images": images,
    }
    # inside of a script element only `<` could end it
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return write_bytes(path, TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", text).encode())


def _what_is_shown(
    n: int, total: int, shape: tuple[int, int], pixel_size_angstrom: float | None, kind: Kind
) -> str:
    """Return how many of how many images there are, and their size in px and Å."""
    y, x = shape
    size = f"{x} × {y} px"
    if pixel_size_angstrom:
        tall, wide = (side * pixel_size_angstrom for side in shape)
        size += f" of {pixel_size_angstrom:.4g} Å ({wide:.0f} × {tall:.0f} Å)"
    if kind == "micrographs":
        size = f"the middle {size}"
    if n < total:
        return f"{n} of {total} {kind}, evenly spread: {size}"
    return f"all {total} {kind}: {size}" if total > 1 else size


def _picture(
    image: NDArray[np.float32], limits: tuple[float, float], colours: str = "gray", *, is_noise: bool = False
) -> str:
    """Return an image as the address that a page shows it by."""
    buffer = io.BytesIO()
    low, high = limits
    imsave(
        buffer,
        image,
        vmin=low,
        vmax=high,
        cmap=colours,
        format="jpg",
        pil_kwargs={"quality": NOISE_QUALITY if is_noise else SMOOTH_QUALITY},
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _correlations(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """`(n,)` correlation of each image of one set with that of the other; 0 where one has a single value."""
    a = a.reshape(len(a), -1) - a.mean(axis=(1, 2), dtype=np.float64)[:, None]
    b = b.reshape(len(b), -1) - b.mean(axis=(1, 2), dtype=np.float64)[:, None]
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray((a * b).sum(1) / np.where(norm > 0, norm, 1.0), np.float64)
