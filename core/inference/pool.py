"""The workers of a batch, by dask.distributed: on this machine, in a queueing system, or elsewhere."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.batch import EngineConfig
from ..config.denoise import DenoiseOptions
from ..errors import Aborted, ConfigurationError, CryohushError, HostError, InputError, OutputError
from ..io.manifest import Manifest
from ..models.weights import LoadedModel, load_model
from .devices import available_threads, resolve_devices
from .engine import Choices, LocalDevices, Task
from .ranges import Assembly, Range, RangeWork, denoise_range, plan_ranges
from .stream import StreamResult

# CPUs of a worker, where none says how many: enough for a batch each, few enough to share the machine.
CPUS_PER_WORKER = 8
POLL_SECONDS = 0.5
# How often to look whether workers are gone.
CHECK_SECONDS = 5.0
# Ranges that are named one by one when they were set aside.
NAMED_RANGES = 8


class RangesFailed(CryohushError):
    """Some ranges of a source failed again and again; the others are finished and kept."""


@dataclass(frozen=True)
class Share:
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
    share
        What each worker has.
    """

    def __init__(self, client: Any, cluster: Any, config: EngineConfig, n_workers: int, share: Share) -> None:
        self.client, self.config, self.n_workers, self.share = client, config, n_workers, share
        self._cluster, self._checking = cluster, threading.Lock()
        self._checked = self._seen = time.monotonic()
        self._n_out, self._free = 0, threading.Condition()
        names, self.types, threads = self._ask(_describe)
        self.names = [f"{n_workers} workers, each {', '.join(names)}"]
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

    def _ask(self, function: Callable[..., Any], *arguments: Any, attempt: int = 1) -> Any:
        """Call a function with the share on some worker, on another one if that one is lost."""
        future = self.client.submit(function, self.share, *arguments, pure=False)
        try:
            return future.result(timeout=self.config.start_timeout_seconds)
        except TimeoutError as error:
            raise HostError(
                f"no worker answered within {self.config.start_timeout_seconds:g} s. Look into the queue of "
                "the cluster and the logs of its jobs, or give engine.start_timeout_seconds more."
            ) from error
        except Exception as error:
            if not _is_death(error):
                raise
            if attempt >= self.config.attempts:
                raise HostError(f"{_in_words(error)}, {attempt} times, before any image.") from error
        return self._ask(function, *arguments, attempt=attempt + 1)

    def choose(
        self,
        model: LoadedModel,
        options: DenoiseOptions,
        shapes: Sequence[tuple[int, int]],
        *,
        are_micrographs: bool,
    ) -> tuple[Choices, str]:
        """Return what suits the workers, and why this precision; measured on one of them."""
        chosen: tuple[Choices, str] = self._ask(_choose, model.path, options, list(shapes), are_micrographs)
        return chosen

    def denoise(
        self,
        task: Task,
        output_dir: Path,
        journal: Manifest,
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> StreamResult:
        """Denoise what is not finished, range by range; a range that always fails does not stop the others.

        Raises
        ------
        RangesFailed
            If ranges were set aside; names them and why. All others are finished.
        OutputError
            If the disk is full or fails.
        Aborted
            If `should_stop` said so; what is finished is kept.
        """
        sizes = (
            dict.fromkeys(task.choices.batch_sizes, 1) if task.are_micrographs else task.choices.batch_sizes
        )
        ranges = plan_ranges(task.stacks, sizes, int(self.config.range_mb * 2**20))
        with Assembly(task, ranges, output_dir, journal) as assembly:
            failed = _Attempts(self, task, assembly, sum(part.n_images for part in ranges)).run(
                progress, should_stop
            )
            if failed:
                raise RangesFailed(_describe_failed(failed, len(ranges)))
            return assembly.finish()


class _Attempts:
    """The ranges of one run on their way through the pool."""

    def __init__(self, pool: Pool, task: Task, assembly: Assembly, n_images: int) -> None:
        self._pool, self._task, self._assembly, self._n_images = pool, task, assembly, n_images
        self._waiting = assembly.waiting()
        self._out: dict[str, tuple[Range, Any]] = {}
        self._tried: dict[str, int] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(
        self, progress: Callable[[int, int], None], should_stop: Callable[[], bool]
    ) -> list[tuple[Range, str]]:
        """Bring all ranges to an end, and return those that were set aside, and why."""
        failed: list[tuple[Range, str]] = []
        done = self._n_images - sum(part.n_images for part in self._waiting)
        progress(done, self._n_images)
        try:
            while self._waiting or self._out:
                self._pool.replace_lost()
                if should_stop():
                    raise Aborted("Stopped on request. What is finished is kept: resume to go on from there.")
                while self._waiting and self._pool.acquire(timeout=0 if self._out else POLL_SECONDS):
                    self._submit(self._waiting.pop(0))
                part, error = self._next()
                if part is None:
                    continue
                if error is None:
                    self._assembly.take(part)
                    done += part.n_images
                    progress(done, self._n_images)
                elif isinstance(error, OutputError):
                    raise error  # the disk is full: the other ranges would fail, too
                elif not isinstance(error, InputError) and self._tried[part.name] < self._attempts:
                    self._waiting.insert(0, part)
                else:
                    failed.append((part, _in_words(error)))
        finally:
            for _, future in self._out.values():
                future.cancel()
                self._pool.release()
        return failed

    @property
    def _attempts(self) -> int:
        return self._pool.config.attempts

    def _submit(self, part: Range) -> None:
        task = self._task
        work = RangeWork(
            part,
            self._assembly.folder(part).absolute(),
            task.model.path.absolute(),
            task.model.sha256,
            task.options,
            task.choices,
            task.are_micrographs,
            task.label,
        )
        self._tried[part.name] = self._tried.get(part.name, 0) + 1
        # the key is what the dashboard shows
        key = f"{part.name} of {self._assembly.output_dir.name}, {uuid.uuid4().hex}"
        future = self._pool.client.submit(_denoise_range, self._pool.share, work, key=key)
        self._out[part.name] = (part, future)
        future.add_done_callback(lambda _, name=part.name: self._finished.put(name))

    def _next(self) -> tuple[Range | None, BaseException | None]:
        """Return a range that came back, and why it failed; nothing if none does within a moment."""
        try:
            part, future = self._out.pop(self._finished.get(timeout=POLL_SECONDS))
        except queue.Empty:
            return None, None
        self._pool.release()
        if future.status == "cancelled":
            return part, HostError("the scheduler went away.")
        error: BaseException | None = future.exception()
        return part, error


def _is_death(error: BaseException) -> bool:
    return type(error).__name__ == "KilledWorker"


def _in_words(error: BaseException) -> str:
    if _is_death(error):
        return "the worker died: killed, out of memory, or crashed (its log may say more)"
    return str(error) if isinstance(error, CryohushError) else f"{type(error).__name__}: {error}"


def _describe_failed(failed: Sequence[tuple[Range, str]], n_ranges: int) -> str:
    named = "; ".join(f"{part.describe()}: {why}" for part, why in failed[:NAMED_RANGES])
    more = f"; and {len(failed) - NAMED_RANGES} more" if len(failed) > NAMED_RANGES else ""
    return (
        f"{len(failed)} of {n_ranges} ranges failed and were set aside: {named}{more}. "
        "What is finished is kept: retry-failed goes on from there."
    )


def _quieten() -> None:
    """What happens to single workers and ranges is told by source; dask's own lines about it frighten."""
    for name in ("nanny", "scheduler", "core", "worker"):
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)


# What follows runs on workers.


def dask_setup(worker: object) -> None:
    """Called by dask where this module is preloaded: in each worker, before it reports."""
    _quieten()


def _devices(share: Share) -> str:
    """Return this worker's device: workers are numbered, and so are the devices."""
    from distributed import get_worker

    name = str(get_worker().name)
    return share.devices[int(name) % len(share.devices) if name.isdigit() else 0]


def _engine(share: Share) -> LocalDevices:
    return LocalDevices(resolve_devices(_devices(share)), share.threads)


def _describe(share: Share) -> tuple[list[str], list[str], int]:
    engine = _engine(share)
    return engine.names, engine.types, engine.threads


def _choose(
    share: Share,
    model: Path,
    options: DenoiseOptions,
    shapes: list[tuple[int, int]],
    are_micrographs: bool,
) -> tuple[Choices, str]:
    return _engine(share).choose(load_model(model), options, shapes, are_micrographs=are_micrographs)


def _denoise_range(share: Share, work: RangeWork) -> None:
    denoise_range(work, _devices(share), share.threads)


# What follows runs in the driver.


@contextlib.contextmanager
def open_pool(config: EngineConfig, log_folder: Path) -> Iterator[Pool]:
    """Start or reach the workers of a plan, and stop what was started.

    Parameters
    ----------
    config
        The plan's engine.
    log_folder
        Where the logs of a queueing system's jobs go.

    Raises
    ------
    ConfigurationError
        If dask is not installed, or the queueing system is told what it does not know.
    HostError
        If the scheduler or its workers cannot be reached.
    """
    try:
        import dask
        import distributed
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"a batch needs {error.name}: pip install 'cryohush[batch]'") from error
    _quieten()
    settings = {
        # a death is an attempt, and attempts are counted here
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-ttl": f"{config.worker_timeout_seconds} s",
        "distributed.scheduler.work-stealing": False,
    }
    with dask.config.set(settings), contextlib.ExitStack() as exits:
        share = _share(config)
        if config.kind == "scheduler":
            cluster: Any = None
            n_workers = config.workers or 0
        else:
            n_workers = config.workers or _n_workers(config)
            with warnings.catch_warnings():
                # it then takes another one, which is told
                warnings.filterwarnings("ignore", message="Port .* is already in use")
                cluster = exits.enter_context(_cluster(config, n_workers, log_folder))
        connect: Any = distributed.Client
        try:
            client = exits.enter_context(
                connect(
                    cluster or config.address,
                    timeout=min(60, config.start_timeout_seconds),
                    set_as_default=False,
                )
            )
            client.wait_for_workers(1, timeout=config.start_timeout_seconds)
        except (OSError, TimeoutError) as error:
            raise HostError(
                f"the cluster ({config.kind}{f', {config.address}' if config.address else ''}) cannot be "
                f"reached, or none of its workers came within {config.start_timeout_seconds:g} s: {error}."
            ) from error
        if not n_workers:
            n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
        yield Pool(client, cluster, config, n_workers, share)


def _share(config: EngineConfig) -> Share:
    if config.kind != "local":
        # a queueing system gives each job its own GPU, which is then the first one that it sees
        device = "cuda:0" if config.device.startswith(("cuda", "gpu")) else config.device
        return Share((device,), config.threads)
    devices = resolve_devices(config.device)
    if devices[0].type == "cuda":
        return Share(tuple(str(device) for device in devices), config.threads)
    return Share(
        ("cpu",), config.threads or max(1, available_threads() // (config.workers or _n_workers(config)))
    )


def _n_workers(config: EngineConfig) -> int:
    devices: list[torch.device] = resolve_devices(config.device)
    return len(devices) if devices[0].type == "cuda" else max(1, available_threads() // CPUS_PER_WORKER)


def _cluster(config: EngineConfig, n_workers: int, log_folder: Path) -> Any:
    """Start a cluster whose workers import torch before they report: while they do, they answer nobody."""
    if config.kind == "local":
        import distributed

        local: Any = distributed.LocalCluster
        return local(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=config.memory or "auto",
            dashboard_address=config.dashboard or ":0",
            host="127.0.0.1",
            preload=[__name__],
        )
    try:
        import dask_jobqueue
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"a batch needs {error.name}: pip install 'cryohush[batch]'") from error
    kind = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}[config.kind]
    log_folder.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "cores": config.threads or CPUS_PER_WORKER,
        "log_directory": str(log_folder),
        **config.queue,
        "scheduler_options": {
            "dashboard_address": config.dashboard or ":0",
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
