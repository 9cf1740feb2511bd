"""The sources of a batch: what they stand for, and what is wrong with them, before anything runs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..config.batch import BatchPlan, FileSource, Options, Source
from ..config.evaluate import EvaluateConfig
from ..errors import ConfigurationError, CryohushError, OutputError
from ..inference.devices import LocalDevices, resolve_devices
from ..io.inputs import item_names, matching
from ..jobs.job import BatchJob, JobSize
from ..jobs.kinds import Result, job_of, report_result
from ..models.weights import list_models
from .state import Item
from .workers import resources_of, workers_of


class Host(Protocol):
    """How the data's host learns of the work; of each method a `CryohushError` belongs to the one source."""

    def find(self, source: Source) -> list[Item]:
        """Return what a source stands for; its job and options come later."""

    def check(self, item: Item) -> None:
        """Raise what would keep the host from taking the result, or from doing `item.job`."""

    def open(self, item: Item) -> Path:
        """Make the host's job, unless `item.output` says that it is there, and return its folder."""

    def is_aborted(self, item: Item) -> bool:
        """Tell whether the user has stopped this source in the host; asked again and again.

        `Aborted` may be raised instead, with the reason.
        """

    def tell(self, item: Item, line: str) -> None:
        """Show a line of the run's log."""

    def show_progress(self, item: Item) -> None:
        """Show how many images are done; called for each batch, so it is the host that skips."""

    def close(self, item: Item, summary: Result | None) -> None:
        """Tell the host the end: without a summary, that it failed or was stopped."""


class Files:
    """The host of files without a project: results go into a folder of the batch.

    Parameters
    ----------
    folder
        Of the batch.
    command
        The command line, for the reports.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command

    def find(self, source: Source) -> list[Item]:
        """Return an item for each file that the path or pattern names."""
        assert isinstance(source, FileSource)  # of this host
        paths = matching(source.file)
        if source.output is not None and len(paths) > 1:
            raise ConfigurationError(
                f"{source.file} names {len(paths)} files, which cannot all go to {source.output}. "
                "Leave output out."
            )
        return [
            Item(
                name=name,
                host="file",
                source=path,
                root=source.root and source.root.absolute(),
                passthrough=tuple(path.absolute() for path in source.passthrough),
                output=(source.output or self._folder / name).absolute(),
            )
            for name, path in zip(item_names(source.name, paths), paths, strict=True)
        ]

    def check(self, item: Item) -> None:
        """Raise where an evaluation is told what is for images alone."""
        if isinstance(item.options, EvaluateConfig) and (item.root or item.passthrough):
            raise ConfigurationError("root and passthrough are not for evaluations. Leave them out.")

    def open(self, item: Item) -> Path:
        """Return the folder."""
        assert item.output is not None  # since `find`
        return item.output

    def is_aborted(self, item: Item) -> bool:
        """Files have no host that could stop the work."""
        return False

    def tell(self, item: Item, line: str) -> None:
        """The source's log file is enough."""

    def show_progress(self, item: Item) -> None:
        """The batch's own state is enough."""

    def close(self, item: Item, summary: Result | None) -> None:
        """Write the report."""
        if summary is not None:
            report_result(summary, self._command)


@dataclass(frozen=True)
class Forecast:
    """What a batch would do.

    Attributes
    ----------
    items
        The sources, with what each has.
    sizes
        Of each.
    seconds
        The time that it takes, about, on devices like those of this machine.
    """

    items: list[Item]
    sizes: list[JobSize]
    seconds: float


def job_of_item(item: Item) -> BatchJob[Any]:
    """Return what is done to a source."""
    return job_of(item.source, item.options, root=item.root, passthrough=item.passthrough)


def prepare(plan: BatchPlan, hosts: Mapping[str, Host]) -> list[tuple[Item, JobSize]]:
    """Find what the sources stand for, and check all that can be checked before anything runs.

    Parameters
    ----------
    plan
        The plan.
    hosts
        By the kind of source.

    Raises
    ------
    ConfigurationError
        With everything that is wrong, source by source.
    """
    problems: list[str] = []
    items: list[Item] = []
    for number, source in enumerate(plan.sources):
        try:
            items += _find(plan, number, source, hosts)
        except CryohushError as error:
            problems.append(f"{source.name or f'source {number + 1}'}: {error}")
    problems += [f"{name}: two sources have this name. Give them names." for name in _told_apart(items, plan)]
    sizes = []
    for item in items:
        try:
            hosts[item.host].check(item)
            sizes.append(_measure(item, plan.output))
            item.n_images = sizes[-1].n_images
        except CryohushError as error:
            problems.append(f"{item.name}: {error}")
    if not problems:
        problems = [*_overlaps(items, sizes), *_full_disks(items, sizes, plan)]
    _refuse(problems)
    return list(zip(items, sizes, strict=True))


def _told_apart(items: Sequence[Item], plan: BatchPlan) -> list[str]:
    """Add the job to the name of items that share it, and return the names that are then still shared.

    Names that the user gave stay.
    """
    given = {source.name for source in plan.sources}
    counts = Counter(item.name for item in items)
    for item in items:
        if counts[item.name] > 1 and item.name not in given:
            name = f"{item.name}_{item.job}"
            if item.output == (plan.output / item.name).absolute():  # not the user's choice
                item.output = item.output.with_name(name)
            item.name = name
    return [name for name, count in Counter(item.name for item in items).items() if count > 1]


def forecast(plan: BatchPlan, hosts: Mapping[str, Host]) -> Forecast:
    """Say what a batch would do, after trials on a device of this machine; nothing is written.

    Raises
    ------
    ConfigurationError
        With everything that is wrong, source by source.
    """
    prepared = prepare(plan, hosts)
    first, threads = resolve_devices(plan.engine.device)[0], resources_of(plan.engine).threads or 1
    devices = LocalDevices([first], threads)
    problems, sizes, seconds = list[str](), list[JobSize](), 0.0
    for item, size in prepared:
        try:
            found, of_this = job_of_item(item).forecast(size, devices)
        except CryohushError as error:
            problems.append(f"{item.name}: {error}")
        else:
            sizes.append(found)
            seconds += of_this
    _refuse(problems)
    return Forecast([item for item, _ in prepared], sizes, seconds / workers_of(plan.engine))


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigurationError(f"nothing was run: {'; '.join(problems)}")


def _find(plan: BatchPlan, number: int, source: Source, hosts: Mapping[str, Host]) -> list[Item]:
    if source.host not in hosts:
        raise ConfigurationError(
            f"this command knows no sources of the kind {source.host}: run the plan with "
            f"{source.host}_cryohush batch."
        )
    job, options = plan.job_of(number), plan.options_of(number)
    return [
        dataclasses.replace(item, job=job, options=_settled(options, item))
        for item in hosts[source.host].find(source)
    ]


def _settled(options: Options, item: Item) -> Options:
    """Return the options with absolute paths: workers, or whoever resumes the batch, may run elsewhere."""
    folder = item.project or Path.cwd()

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: absolute(entry) for name, entry in value.items()}
        return folder / value if isinstance(value, Path) else value

    values = absolute(options.model_dump(exclude_unset=True))
    if isinstance(options, EvaluateConfig):
        values["denoised"] = item.source
    model = values.get("model")
    if model is not None and model not in list_models() and Path(model).exists():
        values["model"] = str(Path(model).absolute())
    return type(options)(**values)


def _measure(item: Item, folder: Path) -> JobSize:
    output = item.output or (item.project or folder) / "External"
    there = next(path for path in [output, *output.parents] if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: cannot be written: {there} is no folder that you may write to.")
    if item.output is not None and output.exists() and any(output.iterdir()):
        raise OutputError(f"{output} is not empty. Empty it, or choose another output.")
    return job_of_item(item).measure(output)


def _overlaps(items: Sequence[Item], sizes: Sequence[JobSize]) -> list[str]:
    """Name sources that would do the same work twice, or write where another one reads or writes."""
    problems = []
    readers: dict[tuple[str, str], str] = {}
    outputs: dict[str, str] = {}
    for item, size in zip(items, sizes, strict=True):
        options = f"{item.job} {item.options.model_dump_json()}"
        # outputs of one job may share stacks, and each gets a job of its own
        inputs = (
            [item.origin] if item.origin is not None else [os.path.realpath(path) for path in size.inputs]
        )
        for path in inputs:
            other = readers.setdefault((path, options), item.name)
            if other != item.name:
                problems.append(f"{item.name}: overlaps with {other}: both read {path}, for the same job.")
                break
        if item.output is not None:
            other = outputs.setdefault(os.path.realpath(item.output), item.name)
            if other != item.name:
                problems.append(f"{item.name}: overlaps with {other}: both write to {item.output}.")
    for path, _ in readers:
        for output, name in outputs.items():
            if Path(path).is_relative_to(output):
                problems.append(f"{name}: its output folder holds {path}, an input.")
    return problems


def _full_disks(items: Sequence[Item], sizes: Sequence[JobSize], plan: BatchPlan) -> list[str]:
    needed: dict[int, int] = defaultdict(int)
    example: dict[int, Path] = {}
    for item, size in zip(items, sizes, strict=True):
        place = item.output or item.project or plan.output
        there = next(path for path in [place, *place.parents] if path.exists())
        device = there.stat().st_dev
        needed[device] += size.bytes
        example[device] = there
    return [
        f"{example[device]}: the disk is too full: {count} bytes are needed, {free} are free. Free some "
        "space, or write float16 (half the size)."
        for device, count in needed.items()
        if count > (free := shutil.disk_usage(example[device]).free)
    ]
