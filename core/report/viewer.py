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

from .figures import bar_length, comparison_rows, limits_of
from .html import write_bytes
from .text import plain
from .verdict import Filtered, kept_shares

TEMPLATE = Path(__file__).with_name("view.html")
# So many pixels of each layer keep the file near ten megabytes; noise is what cannot be compressed.
MAX_PIXELS, MIN_IMAGES = 4_200_000, 3
JPEG_QUALITY = 85
SCORES = {
    "kept": "variance kept",
    "alike": "like low-pass",
    "trust": "trust",
}
SORTS = (
    ("order", "order in the input", None, False),
    ("most kept", "most variance kept", "kept", True),
    ("least kept", "least variance kept", "kept", False),
    ("unlike", "least like the low-pass", "alike", False),
    ("least trusted", "least trusted", "trust", False),
)


def write_viewer(
    path: Path,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
    headline: str,
    note: str,
    filtered: Filtered | None = None,
    trust: NDArray[np.float32] | None = None,
) -> Path:
    """Write the page, replacing an earlier one, and return its path.

    Parameters
    ----------
    raw, denoised
        `(n, y, x)`, the same images. Of many large ones some are shown, evenly spread.
    titles
        One per image.
    pixel_size_angstrom
        For the scale bar, which is in pixels when this is None.
    headline, note
        What stands above the images.
    filtered
        The raw images after the plain low-pass; another layer.
    trust
        `(n, y, x)` from 0 to 1, how far each pixel can be trusted; another layer.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    y, x = raw.shape[-2:]
    limit = max(MIN_IMAGES, MAX_PIXELS // max(y * x, 1))
    chosen = np.unique(np.linspace(0, len(raw) - 1, min(limit, len(raw))).astype(int))
    scores = {"kept": kept_shares(raw, denoised)}
    if filtered is not None:
        scores["alike"] = _correlations(filtered.images, denoised)
    if trust is not None:
        scores["trust"] = trust.mean(axis=(1, 2), dtype=np.float64)
    rows = comparison_rows(raw, denoised, filtered)
    images: list[dict[str, Any]] = []
    for number in chosen.tolist():
        shown = {name: _picture(row.images[number], limits_of(row, number)) for name, row in rows.items()}
        if trust is not None:
            shown["trust"] = _picture(trust[number], (0.0, 1.0), "viridis")
        values = {name: round(float(score[number]), 4) for name, score in scores.items()}
        images.append({"title": plain(titles[number]), "layers": shown, "scores": values})
    length = bar_length(x * (pixel_size_angstrom or 1.0))
    unit = "Å" if pixel_size_angstrom else "px"
    data = {
        "headline": plain(headline),
        "note": plain(note),
        "width": x,
        "height": y,
        "bar": {"share": length / (pixel_size_angstrom or 1.0) / max(x, 1), "label": f"{length} {unit}"},
        "layers": [*rows, *["trust"] * (trust is not None)],
        "scores": [{"name": name, "label": SCORES[name]} for name in scores],
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


def _picture(image: NDArray[np.float32], limits: tuple[float, float], colours: str = "gray") -> str:
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
        pil_kwargs={"quality": JPEG_QUALITY},
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _correlations(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """`(n,)` correlation of each image of one set with that of the other; 0 where one has a single value."""
    a = a.reshape(len(a), -1) - a.mean(axis=(1, 2), dtype=np.float64)[:, None]
    b = b.reshape(len(b), -1) - b.mean(axis=(1, 2), dtype=np.float64)[:, None]
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray((a * b).sum(1) / np.where(norm > 0, norm, 1.0), np.float64)
