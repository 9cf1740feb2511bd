"""The notebooks run from their first cell to their last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["particles", "micrograph"])
def test_a_notebook_runs_and_shows_something(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(ROOT / "examples" / "notebooks" / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # as committed: no output to go stale
    client = nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    folder = os.environ.get("CRYOHUSH_NOTEBOOKS")  # where to leave them, to be looked at
    if folder:
        nbformat.write(notebook, Path(folder) / f"{name}.ipynb")
    kinds = [kind for cell in notebook.cells for o in cell.get("outputs", ()) for kind in o.get("data", ())]
    assert "image/png" in kinds
