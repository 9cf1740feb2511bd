"""A batch: many sources on one pool of workers, where nothing that happens to one stops another."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ... import __version__
from ..config.base import as_keys
from ..config.batch import BatchPlan
from ..errors import Aborted, CryohushError, OutputError
from ..inference.summary import Summary
from ..job_context import JobContext
from ..jobs.kinds import Result
from .sources import Host, job_of_item, prepare
from .state import LOG_FOLDER, BatchState, Item, State, log_path
from .workers import Pool, open_pool

PROGRESS_PERCENT = 5

Action = Literal["run", "resume", "retry-failed"]
# What each action takes up of the sources in the batch's state.
TAKEN_UP: Mapping[Action, frozenset[State]] = {
    "run": frozenset({"waiting"}),
    "resume": frozenset({"waiting", "running", "stopped"}),
    "retry-failed": frozenset({"failed"}),
}


def run_batch(
    plan: BatchPlan,
    hosts: Mapping[str, Host],
    action: Action = "run",
    *,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda line: None,
    command: str | None = None,
) -> list[Item]:
    """Run a batch, or what is left of it.

    Parameters
    ----------
    plan
        The plan.
    hosts
        By the kind of source.
    action
        `run` begins, `resume` takes up what an interrupted batch has left, `retry-failed` what has failed.
    should_stop
        Asked again and again.
    log
        Gets the lines that a user should read.
    command
        The command line, for the records.

    Returns
    -------
    list of Item
        All sources of the batch, with how each has ended.

    Raises
    ------
    CryohushError
        If the batch cannot begin. What goes wrong with one source is in its item.
    """
    with BatchState.open(plan.output, plan) as batch_state:
        if action == "run" and batch_state.items:
            raise OutputError(
                f"{plan.output} holds this batch already. Go on with it (resume, retry-failed), or choose "
                "another output."
            )
        if action != "run" and not batch_state.items:
            raise OutputError(f"{plan.output} holds no batch to go on with. Run the plan first.")
        if not batch_state.items:
            batch_state.items = [item for item, _ in prepare(plan, hosts)]
        todo = [item for item in batch_state.items if item.state in TAKEN_UP[action]]
        if not todo:
            log(f"nothing to do: no source is {' or '.join(sorted(TAKEN_UP[action]))}")
            return batch_state.items
        for item in todo:
            item.state, item.error = "waiting", None
        with open_pool(plan.engine, plan.output / LOG_FOLDER, log) as pool:
            batch_state.dashboard = pool.dashboard
            batch_state.save()
            log(f"{', '.join(pool.names)}; dashboard {pool.dashboard}")
            driver = _Driver(batch_state, hosts, pool, should_stop, log, command)
            with ThreadPoolExecutor(plan.sources_at_once, "source") as executor:
                list(executor.map(driver.run, todo))
            batch_state.save()
        return batch_state.items


class _Driver:
    """Takes sources through a pool; each method for several threads."""

    def __init__(
        self,
        batch_state: BatchState,
        hosts: Mapping[str, Host],
        pool: Pool,
        should_stop: Callable[[], bool],
        log: Callable[[str], None],
        command: str | None,
    ) -> None:
        self._state, self._hosts, self._pool = batch_state, hosts, pool
        self._should_stop, self._log, self._command = should_stop, log, command
        # pictures are drawn by one at a time
        self._drawing = threading.Lock()

    def run(self, item: Item) -> None:
        """Bring one source to an end, whatever happens."""
        if self._should_stop():
            item.state = "stopped"
            return
        item.state, item.begun, item.seconds = "running", time.time(), 0.0
        begin = time.monotonic()
        try:
            summary = self._do(item)
            with self._drawing:
                self._hosts[item.host].close(item, summary)
            if not isinstance(summary, Summary):
                item.key_figures = summary.key_figures
                item.picture = None if summary.picture is None else str(summary.picture)
            item.state = "done"
        except Aborted as error:
            item.state, item.error = "stopped", _in_words_of_batch(error, item, "resume")
        except CryohushError as error:
            item.state, item.error = "failed", _in_words_of_batch(error, item, "retry-failed")
        except Exception as error:  # a broken source never stops the others
            item.state, item.error = "failed", f"unexpected {type(error).__name__}: {error}"
            self._note(item, traceback.format_exc())
        item.seconds = time.monotonic() - begin
        if item.state != "done":
            self._give_up(item)
        said = f"{item.n_done} of {item.n_images} images in {item.seconds:.1f} s"
        line = f"{item.name}: {item.state}, {said}" + (f": {item.error}" if item.error else "")
        self._note(item, line)
        self._log(line)
        self._save()

    def _do(self, item: Item) -> Result:
        host = self._hosts[item.host]
        item.output = host.open(item)
        self._state.save()
        self._note(item, f"cryohush {__version__}: {item.source} to {item.output}")
        last, first = -PROGRESS_PERCENT, True

        def progress(done: int, total: int) -> None:
            nonlocal last, first
            if first:
                item.n_done_before, first = done, False
            item.n_done, item.n_images = done, total
            percent = 100 * done // max(total, 1)
            if percent >= last + PROGRESS_PERCENT:
                last = percent
                self._note(item, f"{done} of {total} images ({percent} %)")
            self._state.save(now=False)
            host.show_progress(item)

        def tell(line: str) -> None:
            self._note(item, line)
            host.tell(item, line)

        context = JobContext(
            progress, lambda: self._should_stop() or host.is_aborted(item), tell, self._command
        )
        job = job_of_item(item)
        result: Result = job.run(item.output, context, earlier=job.earlier_in_hosts, devices=self._pool)
        return result

    def _give_up(self, item: Item) -> None:
        try:
            self._hosts[item.host].close(item, None)
        except CryohushError as error:
            item.error = f"{item.error} And: {error}"

    def _note(self, item: Item, line: str) -> None:
        """Add a line to the source's log, if the disk lets us."""
        try:
            log_path(self._state.folder, item.name).parent.mkdir(exist_ok=True)
            with log_path(self._state.folder, item.name).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError:
            self._log(f"{item.name}: {line}")

    def _save(self) -> None:
        try:
            self._state.save()
        except OutputError as error:  # a full disk: the sources elsewhere go on
            self._log(str(error))


def _in_words_of_batch(error: CryohushError, item: Item, action: Action) -> str:
    """Return what an error of a source says, where it names what only the source's own command has."""
    text = str(error).replace("--resume", f"batch {action}").replace("--root", "root")
    return as_keys(text, type(item.options))
