"""The house: what is packaged, and who may import whom."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Lowest first: a layer imports only from itself and from those before it.
LAYERS = (
    "errors",
    "registry",
    "first_calls",
    "spread",
    "progress",
    "advice",
    "console",
    "job_context",
    "config",
    "io",
    "imaging",
    "simulation",
    "classical",
    "metrics",
    "models",
    "losses",
    "context",
    "inference",
    "noise",
    "report",
    "training",
    "evaluation",
    "jobs",
    "batch",
    "api",
    "doctor",
    "completion",
    "commands",
    "cli",
    "topaz_cli",
    "napari_plugin",
)
ADAPTERS = ("relion_external", "cryosparc_job")
WITHOUT_TORCH = ("errors", "config", "io")
# setup.cfg maps this folder to the package `cryohush` itself: the version and nothing else.
PARENT = ROOT / "core" / "_parent"


def modules() -> dict[str, Path]:
    """Return every module of the three source packages by its import name."""
    found = {"cryohush": PARENT / "__init__.py"}
    for folder in ("core", *ADAPTERS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.parent != PARENT:
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(["cryohush", *(parts[:-1] if path.stem == "__init__" else parts)])] = path
    return found


def layer(module: str) -> str | None:
    """Return the layer or adapter that a module of cryohush belongs to; None for its two outer packages."""
    parts = module.split(".")[1:]
    if parts[:1] == ["core"]:
        parts = parts[1:]
    return parts[0] if parts else None


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield whatever a module imports, anywhere in it, with the line; `from x import y` yields `x.y` too."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def test_the_packages_of_setup_cfg_are_the_folders_with_modules() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    folders = {
        "cryohush" if path.parent == PARENT else ".".join(["cryohush", *path.parent.relative_to(ROOT).parts])
        for path in modules().values()
    }
    assert sorted(listed) == sorted(folders)
    for name in folders - {"cryohush"}:
        assert ROOT.joinpath(*name.split(".")[1:], "__init__.py").is_file(), f"{name} has no __init__.py"


def test_imports_go_down_only_and_adapters_never_meet() -> None:
    wrong = []
    for name, path in modules().items():
        own = layer(name)
        for module, line in imports(name, path):
            other = layer(module) if module.split(".")[0] == "cryohush" else None
            if own is None or other is None or other == own or other == "__version__":
                continue
            if own in ADAPTERS:
                allowed = other in LAYERS
            else:
                allowed = other in LAYERS and LAYERS.index(other) < LAYERS.index(own)
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_a_batch_names_no_host() -> None:
    """Hosts are handed to it, and their sources are entry points: one more host changes nothing there."""
    paths = [ROOT / "core" / "config" / "batch.py", *(ROOT / "core" / "batch").glob("*.py")]
    assert len(paths) > 5
    for path in paths:
        found = re.search(r"relion|cryosparc", path.read_text(), re.IGNORECASE)
        assert found is None, f"{path.relative_to(ROOT)} names {found and found[0]}"


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name) for name in modules()} <= {None, *LAYERS, *ADAPTERS}


def test_errors_config_and_io_never_import_torch() -> None:
    light = [name for name in modules() if layer(name) in WITHOUT_TORCH]
    assert {layer(name) for name in light} == set(WITHOUT_TORCH)
    for name in light:
        found = [
            f"{name}, line {line}" for module, line in imports(name, modules()[name]) if module == "torch"
        ]
        assert not found
    # What they import must not bring it in either.
    code = f"import {', '.join(light)}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plans_and_what_talks_to_a_host_need_no_torch() -> None:
    """A driver of cryoSPARC and a watcher, of which many may run, leave it to the process that calculates."""
    with_torch = {"cryohush.cryosparc_job." + name for name in ("host", "plots")}
    names = {name for name in modules() if layer(name) == "cryosparc_job"} - with_torch
    assert len(names) > 20
    code = f"import cryohush.core.inference.plan, {', '.join(names)}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_about_the_rooms_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = page.split("```")[1]
    rooms = [word for word in re.findall(r"\w+", picture) if word in LAYERS + ADAPTERS]
    assert set(rooms) == {*LAYERS, *ADAPTERS}
    for words in re.findall(r"`([^`\n]+)`", page.replace(picture, "")):
        if re.fullmatch(r"[\w./]+/[\w./]*\w", words):
            assert (ROOT / words).exists(), words
        elif (
            re.fullmatch(r"\w+(\.\w+)+", words)
            and words.split(".")[0] in LAYERS + ADAPTERS
            and not words.endswith((".json", ".safetensors"))
        ):
            room, module, *names = words.split(".")
            path = ROOT / ("" if room in ADAPTERS else "core") / room / f"{module}.py"
            assert path.is_file(), words
            for name in names:
                assert re.search(rf"^ *(class|def) {name}\b", path.read_text(), re.MULTILINE), words
