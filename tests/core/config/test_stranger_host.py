"""Sources of another package's host are read by its own model, and by no other command than its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stranger import installed

from cryohush.core.batch.sources import prepare
from cryohush.core.config.batch import BatchPlan, host_sources
from cryohush.core.config.load import validate
from cryohush.core.errors import ConfigurationError

SOURCE = """
from cryohush.core.config.batch import Source

class Shelf(Source):
    host = "shelf"
    shelf: int

    @property
    def images(self):
        return f"book {self.shelf}"
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[None]:
    host_sources.cache_clear()
    with installed(
        tmp_path / "site", "strange_host", SOURCE, "[cryohush.hosts]\nshelf = strange_host:Shelf\n"
    ):
        yield
    host_sources.cache_clear()


def plan(*sources: dict[str, object]) -> BatchPlan:
    return validate({"output": "batch", "sources": sources}, BatchPlan, "plan.yaml")


@pytest.mark.usefixtures("stranger")
def test_its_sources_are_of_its_own_model() -> None:
    first, second = plan({"file": "a.star"}, {"shelf": 3, "options": {"blend": 0.5}}).sources
    assert (first.host, first.images) == ("file", "a.star")
    assert (second.host, second.images) == ("shelf", "book 3")
    assert '"shelf":3' in plan({"shelf": 3}).model_dump_json()


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"shelf": "left"}, r"sources\.0\.shelf: .*whole number"),
        ({"shelf": 3, "root": "/"}, "root: not for a source of the kind shelf"),
        ({"shelf": 3, "file": "a.star"}, "exactly one of file, .*shelf"),
        ({"shelf": 3, "shelff": 4}, r"unknown key 'sources\.0\.shelff'; did you mean 'shelf'"),
    ],
)
def test_what_its_model_does_not_know_is_refused(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(source)


@pytest.mark.usefixtures("stranger")
def test_a_command_without_that_host_names_the_one_that_has_it() -> None:
    with pytest.raises(ConfigurationError, match="run the plan with shelf_cryohush batch"):
        prepare(plan({"shelf": 3}), {})


def test_without_the_package_its_sources_are_unknown() -> None:
    with pytest.raises(ConfigurationError, match="exactly one of file, "):
        plan({"shelf": 3})
