"""A whole extraction of noise: from micrographs to blocks of noise, their table, label maps and pictures."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ..config.extract_noise import DEFAULT_WINDOW_PX, WINDOWS_ACROSS, ExtractNoiseOptions
from ..errors import ConfigurationError, InputError, TooFewBlocks
from ..inference.devices import LocalDevices, Precision, resolve_devices
from ..inference.plan import output_names
from ..io.files import file_state, make_folder, sha256_of, write_json
from ..io.journal import RANGES_FOLDER, RECORD_NAME, Journal, Undertaking
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader, WriterState
from ..job_context import QUIET, JobContext
from ..models.weights import LoadedModel, Weights
from ..noise.finders import finder_of, load_noise_network
from ..noise.micrograph import Draw, MicrographCounts, MicrographTask, overlay_file, part_file
from ..noise.output import LABELS_FOLDER, PARTS_FOLDER, STACK_NAME, TABLE_NAME, write_noise
from ..noise.patches import count_in_windows
from ..noise.segmentation import BACKGROUND
from ..noise.summary import NoiseSummary, explain
from ..progress import counted
from ..report import PDF_NAME
from .folder import Earlier, JobFolder
from .job import Devices
from .noise_search import Search, SearchWork, choose

# Micrographs that are named one by one.
WARNINGS = 8
# The journal's entry for the number format; micrographs have numbers.
_PRECISION = "precision"


def run_extract_noise(
    source: str | Path,
    output_dir: str | Path,
    options: ExtractNoiseOptions,
    context: JobContext = QUIET,
    *,
    root: Path | None = None,
    earlier: Earlier = "refuse",
    draw: Draw | None = None,
    devices: Devices | None = None,
) -> NoiseSummary:
    """Cut blocks of pure noise out of micrographs.

    `output_dir` gets `noise.mrcs`, `noise.star` (micrograph, coordinates, statistics and method of each
    block; RELION reads it as particles), `labels/` (segmentation), `overlays/` and `cryohush.json`. Each
    worker holds one micrograph; a killed run goes on with the micrographs that are missing.

    Parameters
    ----------
    source
        `micrographs.star`, or one `.mrc`.
    output_dir
        Made if missing.
    options
        What to do.
    context
        Whom to ask and tell.
    root
        Folder that the table's names are relative to; see `MicrographSet.read`.
    earlier
        What to do with an earlier run in the directory; see `jobs.folder`.
    draw
        Writes the picture of a micrograph (`report.overlays.write_overlay`); None draws none.
    devices
        Where to calculate, instead of on `options.device`.

    Raises
    ------
    InputError
        If the input cannot be read or was changed in the meantime, a micrograph is not usable and
        `options.skip_bad` is off, or fewer blocks than `options.min_blocks` were found: the text says
        what excluded how many.
    ConfigurationError
        If the window does not suit the micrographs, or a pixel size is needed and not known.
    OutputError
        If the directory holds another run, or the disk is full.
    ModelError, DeviceError
        If the options cannot be met.
    Aborted
        If `context.should_stop` said so; the run can be resumed.
    """
    begin, output_dir = time.monotonic(), Path(output_dir)
    model = load_noise_network(options)
    if devices is None:
        devices = LocalDevices(resolve_devices(options.device), options.threads)
    images = MicrographSet.read(source, root=root)
    tasks, too_small = plan_search(images, options)
    context.log(
        f"{counted(len(images.stacks), 'micrograph')}, windows of {tasks[0].window_px} px every "
        f"{tasks[0].stride_px} px, model {model.name}, SHA-256 {model.sha256[:16]}…"
    )
    undertaking = _undertaking(images, tasks, model, options, devices, drawn=draw is not None)
    inputs = [images.source, *images.stacks]
    with JobFolder(output_dir, undertaking, earlier, inputs=inputs, log=context.log) as folder:
        journal, n_resumed, was_complete = folder.journal, len(tasks), folder.journal.is_complete
        if not was_complete:
            n_resumed = _search(folder, tasks, model, options, devices, draw, context)
        counts = [
            too_small.get(index) or MicrographCounts(**journal.extras[_part_name(index)])
            for index in range(len(images.stacks))
        ]
        n_blocks = sum(count.kept for count in counts)
        if n_blocks < options.min_blocks:
            raise TooFewBlocks(
                f"{n_blocks} blocks of noise found, {options.min_blocks} are needed. {explain(counts)}",
                path=images.source,
                remedy=_remedy(options, tasks, output_dir),
            )
        drawn = [task for task in tasks if draw and counts[task.index].kept]
        summary = NoiseSummary(
            stack=output_dir / STACK_NAME,
            table=output_dir / TABLE_NAME,
            record=output_dir / RECORD_NAME,
            counts=counts,
            n_blocks=n_blocks,
            window_px=tasks[0].window_px,
            overlays=[overlay_file(output_dir, task) for task in drawn],
            n_resumed=n_resumed,
            seconds=time.monotonic() - begin,
            was_complete=was_complete,
        )
        if not was_complete:
            if _parts(images, tasks) != undertaking.parts:
                raise InputError(
                    "it, or a micrograph that it names, was changed while it was in use.",
                    path=images.source,
                    remedy="Run again with --resume, which searches again what was changed.",
                )
            parts = [
                (task.index, part_file(output_dir, task.index)) for task in tasks if counts[task.index].kept
            ]
            write_noise(
                images,
                output_dir,
                parts,
                n_blocks,
                tasks[0].window_px,
                options.method,
                options.pixel_size_angstrom,
            )
            _write_record(summary, options, model, devices, context.command)
            journal.complete([STACK_NAME, TABLE_NAME, RECORD_NAME])
        # only now: until the journal says that all is done, they are needed
        folder.remove(PARTS_FOLDER)
    return summary


def extract_noise(
    source: str | Path,
    output_dir: str | Path,
    options: ExtractNoiseOptions,
    context: JobContext = QUIET,
    **given: Any,
) -> NoiseSummary:
    """Run `run_extract_noise`, which takes whatever else is given, and report in the folder and the log."""
    from ..report.noise import report_noise
    from ..report.overlays import write_overlay

    summary = run_extract_noise(source, output_dir, options, context, draw=write_overlay, **given)
    log = context.log
    log(f"{counted(summary.n_blocks, 'block')} of {summary.window_px} px in {summary.seconds:.1f} s")
    log(summary.explanation)
    remarks = [count for count in summary.counts if count.remark]
    for count in remarks[:WARNINGS]:
        log(f"warning: {count.micrograph}: {count.remark}")
    if len(remarks) > WARNINGS:
        log(f"{counted(len(remarks), 'conspicuous micrograph')}: see {summary.record}")
    for path in (summary.stack, summary.table, summary.record):
        log(f"wrote {path}")
    # a run that was killed while it drew has all but this
    if not summary.was_complete or not (Path(output_dir) / PDF_NAME).exists():
        log(f"wrote {report_noise(summary, context.command or '')}")
    return summary


def _search(
    folder: JobFolder,
    tasks: Sequence[MicrographTask],
    model: LoadedModel,
    options: ExtractNoiseOptions,
    devices: Devices,
    draw: Draw | None,
    context: JobContext,
) -> int:
    """Search the micrographs that are missing, and return how many are not."""
    journal, output_dir = folder.journal, folder.path
    make_folder(output_dir / PARTS_FOLDER)
    waiting = [task for task in tasks if not journal.is_finished(_part_name(task.index))]
    n_resumed = len(tasks) - len(waiting)
    if folder.goes_on:
        context.log(f"done already: {counted(n_resumed, 'micrograph')}")
    precision = _precision(devices, options, journal, context.log)

    def take(task: MicrographTask, counts: MicrographCounts) -> None:
        key = _part_name(task.index)
        made = [key, _label_name(task), _overlay_name(task)]
        journal.record(key, WriterState(), asdict(counts))
        journal.finish(key, [name for name in made if (output_dir / name).exists()])

    search = Search(waiting, Weights.of(model), precision, options, output_dir, draw)
    devices.do(SearchWork(search, len(tasks), take), context)
    return n_resumed


def _part_name(index: int) -> str:
    return part_file(Path(), index).as_posix()


def _label_name(task: MicrographTask) -> str:
    return f"{LABELS_FOLDER}/{task.short_name}"


def _overlay_name(task: MicrographTask) -> str:
    return overlay_file(Path(), task).as_posix()


def _remedy(options: ExtractNoiseOptions, tasks: Sequence[MicrographTask], output_dir: Path) -> str:
    ways = "Try a smaller window_px or stride_px, or wider limits"
    window = tasks[0].window_px // 2
    while window >= max(16, finder_of(options).smallest_window_px(options)):
        free = sum(_free_windows(output_dir / _label_name(task), window) for task in tasks)
        if free:
            ways = (
                f"With window_px {window}, {free} windows touch neither particles nor contamination. Try that"
                ", or a smaller stride_px, or wider limits"
            )
            break
        window //= 2
    return f"{ways}, {finder_of(options).remedy}."


def _free_windows(label_map: Path, window_px: int) -> int:
    """Return how many windows, half of one apart, touch nothing but background; 0 without a label map."""
    if not label_map.exists():
        return 0
    with StackReader(label_map) as reader:
        labels = torch.from_numpy(reader.read([0])[0])
    touched = count_in_windows(labels != BACKGROUND, window_px, max(1, window_px // 2))
    return int((touched == 0).sum())


def plan_search(
    images: MicrographSet, options: ExtractNoiseOptions
) -> tuple[list[MicrographTask], dict[int, MicrographCounts]]:
    """The micrographs to search, and those that the window does not fit into.

    Raises
    ------
    ConfigurationError
        If the window does not suit the micrographs, or a pixel size is needed and not known.
    """
    tasks, too_small, finder = [], {}, finder_of(options)
    names, shapes = output_names(images), images.check_images()
    # a few odd ones among them do not count
    share = int(statistics.median(min(shape) for shape in shapes)) // WINDOWS_ACROSS
    default = min(DEFAULT_WINDOW_PX, max(share, 16, finder.smallest_window_px(options)))
    for index, shape in enumerate(shapes):
        pixel_size = options.pixel_size_angstrom or images.pixel_size_angstrom(index)
        window, stride = options.window_and_stride_px(pixel_size, default)
        task = MicrographTask(
            index,
            images.stacks[index],
            images.stack_names[index],
            names[index],
            shape,
            pixel_size,
            window,
            stride,
        )
        if finder.needs_pixel_size and pixel_size is None:
            raise ConfigurationError(
                f"method {options.method} needs the pixel size of {task.name}, which {images.source} does "
                "not say. Give pixel_size_angstrom."
            )
        if window > min(shape):
            remark = (
                f"the window of {window} px is larger than the {shape[1]} x {shape[0]} px of the micrograph."
            )
            too_small[index] = MicrographCounts(task.name, remark=remark)
        else:
            tasks.append(task)
    if not tasks:
        raise ConfigurationError(
            f"{next(iter(too_small.values())).remark} Give a smaller window_px or window_angstrom."
        )
    windows = sorted({task.window_px for task in tasks})
    if len(windows) > 1:
        raise ConfigurationError(
            f"with the pixel sizes of these micrographs, window_angstrom {options.window_angstrom:g} is from "
            f"{windows[0]} to {windows[-1]} px, and a stack has one size. Give window_px, or extract from "
            "one pixel size at a time."
        )
    if windows[0] < finder.smallest_window_px(options):
        raise ConfigurationError(
            f"a window of {windows[0]} px is too small for {options.local_patches} local patches and method "
            f"{options.method}: at least {finder.smallest_window_px(options)} px are needed."
        )
    return tasks, too_small


def _undertaking(
    images: MicrographSet,
    tasks: Sequence[MicrographTask],
    model: LoadedModel,
    options: ExtractNoiseOptions,
    devices: Devices,
    *,
    drawn: bool,
) -> Undertaking:
    """The files to make, each with all that it depends on."""
    chosen = options.model_dump(mode="json", exclude={"model", "device", "threads", "min_blocks"})
    fingerprint = {
        "version": __version__,
        "input": str(images.source.absolute()),
        "model": model.sha256,
        "device": devices.types,
        **chosen,
    }
    files = [STACK_NAME, RECORD_NAME, PDF_NAME]
    if finder_of(options).makes_labels:
        files += map(_label_name, tasks)
    if drawn:
        files += map(_overlay_name, tasks)
    folders = [PARTS_FOLDER, RANGES_FOLDER]
    return Undertaking("extract-noise", fingerprint, _parts(images, tasks), files, folders)


def _parts(images: MicrographSet, tasks: Sequence[MicrographTask]) -> dict[str, str]:
    """What is made of each micrograph, and the table, with digests of what they are made of.

    Raises
    ------
    InputError
        If something of it is gone.
    """
    parts = {}
    for task in tasks:
        made_of = f"{task}\0{file_state(task.path)}"
        digest = hashlib.sha256(made_of.encode(errors="surrogateescape"))
        parts[_part_name(task.index)] = digest.hexdigest()[:32]
    parts[TABLE_NAME] = sha256_of(
        *([images.source] if images.has_table else []), salt=str(images.root.absolute())
    )
    return parts


def _precision(
    devices: Devices,
    options: ExtractNoiseOptions,
    journal: Journal,
    log: Callable[[str], None],
) -> Precision:
    """The number format that the journal holds, or a new one, which it then holds."""
    precision: Precision | None = journal.extras.get(_PRECISION)
    reason = "as when the run began"
    if precision is None:
        precision, reason = devices.ask(choose, options.precision)
        journal.record(_PRECISION, WriterState(), precision)
    log(f"device {', '.join(devices.names)}, precision {precision} ({reason})")
    return precision


def _write_record(
    summary: NoiseSummary,
    options: ExtractNoiseOptions,
    model: LoadedModel,
    devices: Devices,
    command: str | None,
) -> None:
    record = {
        "version": __version__,
        "command": command,
        "options": options.model_dump(mode="json"),
        "model": {"name": Path(model.name).name, "sha256": model.sha256},
        "devices": devices.names,
        "blocks": summary.n_blocks,
        "window_px": summary.window_px,
        "what_became_of_the_windows": summary.explanation,
        "resumed_micrographs": summary.n_resumed,
        "seconds": round(summary.seconds, 2),
        "micrographs": [asdict(count) for count in summary.counts],
    }
    write_json(summary.record, record)
