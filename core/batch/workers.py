"""The workers of a batch, by dask.distributed: on this machine, in a queueing system, or elsewhere."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.batch import EngineConfig
from ..errors import ConfigurationError, CryohushError, HostError, missing_package
from ..inference.devices import LocalDevices, available_threads, resolve_devices
from ..job_context import JobContext
from ..jobs.job import Work
from ..progress import counted
from .retry import RangesFailed, describe_failed, do_parts, in_words, is_death

# CPUs of a worker, where none says how many: enough for a batch each, few enough to share the machine.
CPUS_PER_WORKER = 8
# How often to look whether workers are gone.
CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class Resources:
    """What a worker calculates on: a device, and its CPU threads."""

    devices: tuple[str, ...]
    threads: int | None


class Pool:
    """Workers that are there; to be made by `open_pool`.

    Parameters
    ----------
    client
        Of dask.
    cluster
        What has started the workers; None for a scheduler elsewhere.
    config
        The plan's engine.
    n_workers
        How many ranges are out at the same time.
    resources
        What each worker has.
    """

    def __init__(
        self, client: Any, cluster: Any, config: EngineConfig, n_workers: int, resources: Resources
    ) -> None:
        self.client, self.config, self.n_workers, self.resources = client, config, n_workers, resources
        self._cluster, self._checking = cluster, threading.Lock()
        self._checked = self._seen = time.monotonic()
        self._n_out, self._free = 0, threading.Condition()
        names, self.types, threads = self.ask(_describe)
        self.names = [f"{counted(n_workers, 'worker')}, each {', '.join(names)}"]
        self.threads = threads * n_workers

    @property
    def dashboard(self) -> str:
        """Where dask shows what the workers do."""
        return str(self.client.dashboard_link)

    def acquire(self, timeout: float) -> bool:
        """Take the right to have one more range out, if there is one within so many seconds.

        There are as many as living workers: of two ranges on one worker, one that kills it takes the other
        one with it.
        """
        with self._free:
            if self._n_out >= self._n_alive():
                self._free.wait(timeout)
            if self._n_out >= self._n_alive():
                return False
            self._n_out += 1
            return True

    def release(self) -> None:
        """Give the right back."""
        with self._free:
            self._n_out -= 1
            self._free.notify()

    def _n_alive(self) -> int:
        return max(1, min(self.n_workers, len(self.client.nthreads())))

    def replace_lost(self) -> None:
        """Start workers anew that are gone for good; to be called again and again.

        Raises
        ------
        HostError
            If there has been no worker for long.
        """
        with self._checking:
            now = time.monotonic()
            if now - self._checked < CHECK_SECONDS:
                return
            self._checked = now
            if self.client.scheduler_info(n_workers=-1)["workers"]:
                self._seen = now
            elif now - self._seen > self.config.start_timeout_seconds:
                raise HostError(
                    "all workers are gone, and none has come back for "
                    f"{self.config.start_timeout_seconds:g} s."
                )
            if self._cluster is not None:
                self._cluster.scale(self.n_workers)

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the future of a function, which gets the arguments and the worker's devices."""
        return self.client.submit(_on_worker, self.resources, function, *arguments, key=key)

    def ask(self, function: Callable[..., Any], *arguments: Any, attempt: int = 1) -> Any:
        """Call a function on some worker, on another one if that one is lost; see `submit`.

        Raises
        ------
        HostError
            If no worker answers, or all die of it.
        """
        future = self.submit(uuid.uuid4().hex, function, *arguments)
        try:
            return future.result(timeout=self.config.start_timeout_seconds)
        except TimeoutError as error:
            raise HostError(
                f"no worker answered within {self.config.start_timeout_seconds:g} s. Look into the queue of "
                "the cluster and the logs of its jobs, or give engine.start_timeout_seconds more."
            ) from error
        except Exception as error:
            if not is_death(error):
                raise
            if attempt >= self.config.attempts:
                raise HostError(f"{in_words(error)}, {attempt} times, before any image.") from error
        return self.ask(function, *arguments, attempt=attempt + 1)

    def do(self, work: Work, context: JobContext) -> None:
        """Do the work part by part; a part that always fails does not stop the others.

        Raises
        ------
        RangesFailed
            If parts were set aside; names them and why. All others are finished.
        OutputError
            If the disk is full or fails.
        Aborted
            If `context.should_stop` said so; what is finished is kept.
        """
        with work.in_parts(int(self.config.range_mb * 2**20)) as parts:
            failed = do_parts(self, parts, context)
            if failed and parts.is_whole:
                ((_, error),) = failed
                raise error if isinstance(error, CryohushError) else HostError(in_words(error)) from error
            if failed:
                raise RangesFailed(describe_failed(failed, parts.n_parts))


def _quieten() -> None:
    """What happens to single workers and ranges is told by source; dask's own lines about it frighten."""
    for name in ("nanny", "scheduler", "core", "worker"):
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)


# What follows runs on workers.


def dask_setup(worker: object) -> None:
    """Called by dask where this module is preloaded: in each worker, before it reports."""
    _quieten()


def _on_worker(resources: Resources, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with the devices of this worker: workers are numbered, and so are they."""
    from distributed import get_worker

    name = str(get_worker().name)
    device = resources.devices[int(name) % len(resources.devices) if name.isdigit() else 0]
    return function(*arguments, LocalDevices(resolve_devices(device), resources.threads))


def _describe(devices: LocalDevices) -> tuple[list[str], list[str], int]:
    return devices.names, devices.types, devices.threads


# What follows runs in the driver.


@contextlib.contextmanager
def open_pool(
    config: EngineConfig, log_folder: Path, log: Callable[[str], None] = lambda line: None
) -> Iterator[Pool]:
    """Start or reach the workers of a plan, and stop what was started.

    Parameters
    ----------
    config
        The plan's engine.
    log_folder
        Where the logs of a queueing system's jobs go.
    log
        Gets a warning where the connections are open to others.

    Raises
    ------
    ConfigurationError
        If dask is not installed, or the queueing system is told what it does not know.
    HostError
        If the scheduler or its workers cannot be reached.
    """
    try:
        import cryptography  # noqa: F401  # distributed makes its keys with it
        import dask
        import distributed
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    _quieten()
    settings = {
        # a death is an attempt, and attempts are counted here
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-ttl": f"{config.worker_timeout_seconds} s",
        "distributed.scheduler.work-stealing": False,
    }
    with dask.config.set(settings), contextlib.ExitStack() as exits:
        resources = resources_of(config)
        if config.kind == "scheduler":
            cluster: Any = None
            n_workers = config.workers or 0
            _warn_if_open(str(config.address), log)
        else:
            n_workers = workers_of(config)
            with warnings.catch_warnings():
                # it then takes another one, which is told
                warnings.filterwarnings("ignore", message="Port .* is already in use")
                cluster = exits.enter_context(_cluster(config, n_workers, log_folder, exits))
        connect: Any = distributed.Client
        try:
            client = exits.enter_context(
                connect(
                    cluster or config.address,
                    security=cluster.security if cluster else _security(config),
                    timeout=min(60, config.start_timeout_seconds),
                    set_as_default=False,
                )
            )
            client.wait_for_workers(1, timeout=config.start_timeout_seconds)
        except (OSError, ValueError, TimeoutError) as error:
            raise HostError(
                f"the cluster ({config.kind}{f', {config.address}' if config.address else ''}) cannot be "
                f"reached, or none of its workers came within {config.start_timeout_seconds:g} s: {error}."
            ) from error
        if not n_workers:
            n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
        yield Pool(client, cluster, config, n_workers, resources)


def resources_of(config: EngineConfig) -> Resources:
    """Return what each worker of a plan has."""
    if config.kind != "local":
        # a queueing system gives each job its own GPU, which is then the first one that it sees
        device = "cuda:0" if config.device.startswith(("cuda", "gpu")) else config.device
        return Resources((device,), config.threads)
    devices = resolve_devices(config.device)
    if devices[0].type == "cuda":
        return Resources(tuple(str(device) for device in devices), config.threads)
    return Resources(("cpu",), config.threads or max(1, available_threads() // workers_of(config)))


def workers_of(config: EngineConfig) -> int:
    """Return how many workers a plan has on this machine; of a scheduler, how many it says."""
    if config.workers is not None:
        return config.workers
    devices: list[torch.device] = resolve_devices(config.device)
    return len(devices) if devices[0].type == "cuda" else max(1, available_threads() // CPUS_PER_WORKER)


def _security(config: EngineConfig, folder: Path | None = None) -> Any:
    """Return the keys of a batch: without one nobody can run code as its user.

    Workers of a queueing system read new keys from files in `folder`, which only this user may enter.
    """
    import distributed

    keys: Any = distributed.Security
    if config.certificates is not None:
        files = config.certificates
        for path in (files.authority, files.certificate, files.key):
            if not path.is_file():
                raise ConfigurationError(f"engine.certificates: {path}: no such file.")
        return _same_for_all(files.authority, files.certificate, files.key)
    if config.kind == "scheduler":
        return keys()
    made = keys.temporary()
    if folder is None:
        return made
    paths = []
    texts = {"ca": made.tls_ca_file, "certificate": made.tls_worker_cert, "key": made.tls_worker_key}
    for name, text in texts.items():
        paths.append(folder.absolute() / f"{name}.pem")
        paths[-1].write_text(text, encoding="ascii")
    return _same_for_all(*paths)


def _same_for_all(authority: Path, certificate: Path, key: Path) -> Any:
    """Return keys that client, scheduler and workers share."""
    import distributed

    keys: Any = distributed.Security
    roles = {
        f"tls_{role}_{part}": str(path)
        for role in ("client", "scheduler", "worker")
        for part, path in (("cert", certificate), ("key", key))
    }
    return keys(require_encryption=True, tls_ca_file=str(authority), **roles)


def _warn_if_open(address: str, log: Callable[[str], None]) -> None:
    """Say so if anybody who reaches a scheduler can run code as its user."""
    if not address.startswith("tls://"):
        log(
            f"warning: {address} takes work from anybody who can reach it, and does it as the user of its "
            "workers. Start it with certificates (dask scheduler --tls-ca-file ...), and give its tls:// "
            "address and engine.certificates."
        )


def _dashboard(config: EngineConfig) -> str:
    """Return the dashboard's address: on this machine alone, unless the plan names another."""
    address = config.dashboard or ":0"
    return f"127.0.0.1{address}" if address.startswith(":") else address


def _cluster(config: EngineConfig, n_workers: int, log_folder: Path, exits: contextlib.ExitStack) -> Any:
    """Start a cluster whose workers import torch before they report: while they do, they answer nobody.

    What it leaves on the disk goes at the end of `exits`.
    """
    if config.kind == "local":
        import distributed

        local: Any = distributed.LocalCluster
        try:
            return local(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=config.memory or "auto",
                dashboard_address=_dashboard(config),
                host="tls://127.0.0.1",
                security=_security(config),
                preload=[__name__],
            )
        except RuntimeError as error:
            raise HostError(
                f"the workers could not be started: {str(error).rstrip('.')}. Is this machine overloaded, or "
                "short of memory? Ask for fewer engine.workers."
            ) from error
    try:
        import dask_jobqueue
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    kind = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}[config.kind]
    log_folder.mkdir(parents=True, exist_ok=True)
    keys = exits.enter_context(tempfile.TemporaryDirectory(prefix=".keys-", dir=log_folder))
    arguments: dict[str, Any] = {
        "cores": config.threads or CPUS_PER_WORKER,
        "log_directory": str(log_folder),
        "interface": config.interface,
        **config.queue,
        "security": _security(config, Path(keys)),
        "scheduler_options": {
            "dashboard_address": _dashboard(config),
            **config.queue.get("scheduler_options", {}),
        },
        "memory": config.memory,
        "processes": 1,
    }
    # One range at a time: the worker itself uses all the cores.
    arguments["worker_extra_args"] = [
        "--nthreads",
        "1",
        "--preload",
        __name__,
        *arguments.get("worker_extra_args", []),
    ]
    try:
        cluster = getattr(dask_jobqueue, kind)(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"engine.queue: {error}") from error
    cluster.scale(jobs=n_workers)
    return cluster
