"""What a job shows its user: a montage of images, a page to look through them, and `logfile.pdf`."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

PDF_NAME, PNG_NAME, VIEWER_NAME = "logfile.pdf", "montage.png", "view.html"


def quiet_matplotlib() -> None:
    """Let matplotlib keep its files in a temporary folder where the home folder cannot be written to.

    On a compute node it often cannot. Matplotlib would do the same by itself, but with warnings on stderr,
    which RELION's GUI shows in red. To be called before matplotlib is imported.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    if os.environ.get("MPLCONFIGDIR"):
        return
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path(os.environ.get("HOME") or "/") / ".config")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or "/") / ".cache")
    if not all(_can_be_written(folder / "matplotlib") for folder in (home, cache)):
        os.environ["MPLCONFIGDIR"] = str(Path(tempfile.gettempdir()) / f"cryohush-matplotlib-{os.getuid()}")


def _can_be_written(folder: Path) -> bool:
    """Tell whether a folder can be written to, or made."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
