"""What people install: the recipes name what setup.cfg names."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import cryohush

ROOT = Path(__file__).parents[1]
# What conda-forge calls packages that have another name there.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


@pytest.fixture(scope="module")
def options() -> configparser.SectionProxy:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["options"]


def requirements(text: str) -> dict[str, str]:
    """Name to version of the lines of a section of setup.cfg."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {name: version for name, _, version in (line.partition(" ") for line in lines if line)}


def recipe() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text()))


def test_the_conda_recipe_needs_what_setup_cfg_needs(options: configparser.SectionProxy) -> None:
    needed = {
        CONDA_NAMES.get(name, name): version
        for name, version in requirements(options["install_requires"]).items()
    }
    needed["python"] = options["python_requires"]
    found = requirements("\n".join(recipe()["requirements"]["run"]))
    assert found == needed


def test_the_conda_recipe_has_the_programs_of_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    programs = config["options.entry_points"]["console_scripts"].split("\n")
    assert sorted(recipe()["build"]["python"]["entry_points"]) == sorted(filter(None, programs))


@pytest.mark.parametrize("name", ["Dockerfile", "cryohush.def"])
def test_containers_install_extras_and_indexes_that_there_are(name: str) -> None:
    text = (ROOT / "packaging" / name).read_text()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r"'[^']*\[([a-z,]+)\]'", text)
    assert set(extras.split(",")) <= set(config["options.extras_require"])
    # the column "index" of the table of drivers
    indexes = set(re.findall(r"\| `(cu\d+|cpu)`", (ROOT / "docs/install.md").read_text()))
    assert {"cpu", "cu126"} < indexes
    assert set(re.findall(r"(?i)torch_index=(\w+)", text)) <= indexes


def test_the_recipes_are_of_this_version() -> None:
    assert recipe()["context"]["version"] == cryohush.__version__
    assert f"version: {cryohush.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_everything_that_is_required_has_a_tested_version() -> None:
    pins = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = {line.partition("==")[0] for line in pins if "==" in line}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    sections = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = {name.lower() for text in sections for name in requirements(text)}
    assert not names - pinned, f"constraints.txt does not pin {', '.join(sorted(names - pinned))}"


def test_a_source_archive_holds_what_its_tests_need() -> None:
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith("graft")}
    assert {"tests", "examples", "docs", "packaging"} <= grafted
    for name in (word for line in lines if line.startswith("include") for word in line.split()[1:]):
        assert (ROOT / name).is_file(), f"MANIFEST.in names {name}, which is not there"


@pytest.mark.parametrize("module", ["core.jobs.denoise", "core.jobs.kinds", "relion_external.host"])
def test_what_runs_a_model_imports_no_package_of_an_extra(module: str) -> None:
    others = (
        "gemmi lightning_fabric tensorboardX skimage sklearn distributed dask_jobqueue bm3d cryosparc lz4"
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({others.split()!r})); import cryohush.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)
