"""What denoised images are for is said in the same words everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryohush.core.advice import USE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_pages_say_it(page: str) -> None:
    words = " ".join((ROOT / page).read_text(encoding="utf-8").replace("*", "").split())
    # a link may follow instead of the last stop
    assert USE.rstrip(".") in words


def test_no_module_words_it_anew() -> None:
    found = [
        path.name
        for folder in ("core", "relion_external", "cryosparc_job")
        for path in (ROOT / folder).rglob("*.py")
        if "classify, refine" in path.read_text(encoding="utf-8").lower()
    ]
    assert found == ["advice.py"]
