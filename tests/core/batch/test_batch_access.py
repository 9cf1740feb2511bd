"""Who may talk to the workers of a batch, and what the names of its sources stand for."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryohush.core.batch import workers
from cryohush.core.batch.workers import Pool, open_pool
from cryohush.core.config.batch import EngineConfig
from cryohush.core.config.load import validate
from cryohush.core.errors import ConfigurationError, InputError
from cryohush.core.io.inputs import matching

pytest.importorskip("distributed")
ENGINE = {"device": "cpu", "workers": 1, "threads": 1, "memory": "2GB"}


@pytest.fixture(scope="module")
def pool(warm_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with open_pool(EngineConfig(**ENGINE, dashboard=None), tmp_path_factory.mktemp("logs")) as pool:
        yield pool


def connects(address: str, security: Any = None, seconds: float = 120) -> bool:
    """Whether a client with these keys, or none, may run code on the batch's workers."""
    from distributed import Client

    try:
        with Client(address, timeout=seconds, security=security, set_as_default=False) as client:
            return client.submit(os.getpid, pure=False).result(timeout=seconds) > 0
    except (OSError, TimeoutError, TypeError, RuntimeError):
        return False


def test_nobody_without_the_keys_of_a_batch_runs_code_on_its_workers(pool: Pool) -> None:
    from distributed.security import Security

    address = pool.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    assert connects(address, pool.client.security)  # so that the refusals below mean something
    assert not connects(address.replace("tls", "tcp"), seconds=3)
    assert not connects(address, Security.temporary(), seconds=3)


def test_the_dashboard_is_of_this_machine_alone(pool: Pool) -> None:
    port = int(pool.dashboard.split(":")[2].split("/")[0])
    # not json/identity.json, which fails while a worker reports what it has measured: dask's keys are tuples
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=120).read() == b"ok"
    # another address of this machine, as anybody on its network has it
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) != 0


def test_the_keys_of_a_queueing_systems_workers_are_for_their_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(dask_jobqueue.SLURMCluster, "scale", lambda self, jobs: None)
    config = EngineConfig(
        kind="slurm", workers=1, memory="1GB", threads=1, dashboard=None, queue={"cores": 1}, interface="lo"
    )
    with contextlib.ExitStack() as exits:
        cluster = exits.enter_context(workers._cluster(config, 1, tmp_path / "logs", exits))
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        assert cluster.security.require_encryption
        key = Path(cluster.security.tls_worker_key)
        assert str(key) in cluster.job_script()
        assert "PRIVATE KEY" in key.read_text()
        assert key.is_relative_to(tmp_path / "logs")  # which the workers' machines see, too
        assert not key.parent.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    assert not key.exists()


def test_certificates_of_ones_own_are_used_or_missed_by_name(tmp_path: Path) -> None:
    from distributed.security import Security

    made = Security.temporary()
    files = {"authority": made.tls_ca_file, "certificate": made.tls_worker_cert, "key": made.tls_worker_key}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names = {name: str(tmp_path / name) for name in files}
    config = EngineConfig.model_validate({**ENGINE, "dashboard": None, "certificates": names})
    with open_pool(config, tmp_path / "logs") as pool:
        assert connects(pool.client.scheduler.address, made)
    (tmp_path / "key").unlink()
    with (
        pytest.raises(ConfigurationError, match=r"certificates: .*key: no such file"),
        open_pool(config, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kind": "scheduler", "address": "tls://host:8786"}, "certificates go together"),
        ({"interface": "ib0"}, "interface belongs to kind: slurm"),
    ],
)
def test_connections_that_cannot_be_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        validate(entries, EngineConfig, "plan.yaml")


def test_a_scheduler_open_to_anybody_is_warned_of() -> None:
    lines: list[str] = []
    workers._warn_if_open("tcp://host:8786", lines.append)
    workers._warn_if_open("tls://host:8786", lines.append)
    assert len(lines) == 1
    assert "anybody who can reach it" in lines[0]


@pytest.mark.parametrize("name", ["Pos_7_[-61.00].mrcs", "[1-0]*.mrcs", "a?.mrcs", "[[].mrcs"])
def test_a_file_that_is_there_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "ab.mrcs").touch()
    assert matching(str(tmp_path / name)) == [tmp_path / name]
    assert matching(name, tmp_path) == [tmp_path / name]


def test_patterns_find_names_with_brackets_in_folders_with_brackets(tmp_path: Path) -> None:
    folder = tmp_path / "project [2]"
    folder.mkdir()
    for name in ("tilt[-61]_1.mrc", "tilt[-61]_2.mrc", "tilt1.mrc"):
        (folder / name).touch()
    assert [path.name for path in matching("tilt[-61]_*.mrc", folder)] == [
        "tilt[-61]_1.mrc",
        "tilt[-61]_2.mrc",
    ]
    assert [path.name for path in matching("tilt[0-9].mrc", folder)] == ["tilt1.mrc"]
    with pytest.raises(InputError, match="no such file"):
        matching("none*.mrc", folder)


def test_a_jobs_alias_is_not_another_file(tmp_path: Path) -> None:
    job = tmp_path / "Extract" / "job007"
    job.mkdir(parents=True)
    (job / "particles.star").touch()
    (tmp_path / "Extract" / "all").symlink_to(job)
    assert matching("Extract/*/particles.star", tmp_path) == [job / "particles.star"]
