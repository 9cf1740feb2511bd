"""A project with real particles, a double of cryoSPARC that has it, and a user who is signed in."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import warm
from cryosparc_project import Run, particle_table, store_token, write_stacks
from double_store import Store
from double_v5 import Double5

from cryohush.core.models import MODELS
from cryohush.core.models.weights import save_model
from cryohush.cryosparc_job import guard, instance, job, worker
from cryohush.cryosparc_job.cli import main

COMMAND = worker.COMMAND
NETWORK: dict[str, Any] = {"widths": [4, 4], "blocks": [1, 1], "unshuffle": 2}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose every layer does something."""
    module = MODELS["shuffle_unet"](**NETWORK)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(path, module, "shuffle_unet", NETWORK, {"description": "random weights"})
    return path


@pytest.fixture(autouse=True)
def no_open_sockets() -> Iterator[None]:
    """Collect clients that could not sign in: they leave their sockets to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def warm_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real work is begun quickly; other children are processes as always."""

    def start(command: Sequence[str], **given: Any) -> Any:
        if command != COMMAND:
            return subprocess.Popen(command, **given)
        keep = ("env", "umask", "pass_fds")
        return warm.Child(command, **{name: given[name] for name in keep})

    names = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "TimeoutExpired")}
    monkeypatch.setattr(worker, "subprocess", SimpleNamespace(Popen=start, **names))


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home without tokens; neither proxies nor a sourced cryoSPARC are in the environment."""
    for name in [name for name in os.environ if name.startswith("CRYOSPARC_") or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A project whose job J42 has extracted particles."""
    store = Store(tmp_path)
    store.add_source("particle", particle_table())
    write_stacks(store.directory)
    return store


@pytest.fixture
def double(store: Store) -> Iterator[Double5]:
    double = Double5(store)
    yield double
    double.server.close()


@pytest.fixture
def signed_in(double: Double5, clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sign in to the double; what waits does so for a short while."""
    from cryosparc.auth import get_default_auth_config_path

    get_default_auth_config_path.cache_clear()
    monkeypatch.setattr(instance, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(instance, "PATIENCE_SECONDS", 120.0)
    monkeypatch.setattr(instance, "ERROR_PATIENCE_SECONDS", 10.0)
    monkeypatch.setattr(job, "CONFIRM_SECONDS", 0.01)
    monkeypatch.setattr(guard, "LAST_WORD_SECONDS", 2.0)
    return store_token(clean_environment, double.url)


@pytest.fixture
def denoise(double: Double5, signed_in: Path, weights: Path) -> Run:
    """Run `cryosparc_cryohush denoise` on J42:particles, unless other words say otherwise."""

    def run(*words: str, particles: str | None = "J42:particles", workspace: str | None = "W1") -> int:
        command = ["denoise", "--url", double.url, "--project", "P3", *words]
        command += ["--particles", particles] if particles else []
        command += ["--workspace", workspace] if workspace else []
        quick = ["--model", str(weights), "--device", "cpu", "--threads", "1", "--precision", "fp32"]
        return main([*command, *quick, "--batch-size", "4"])

    return run


@pytest.fixture
def child_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the child process by `fake_work`; the word says what it does."""

    def does(kind: str) -> None:
        script = Path(__file__).with_name("fake_work.py")
        monkeypatch.setattr(worker, "COMMAND", (sys.executable, str(script), kind))

    return does


@pytest.fixture
def copying(child_does: Callable[[str], None]) -> None:
    child_does("copy")
