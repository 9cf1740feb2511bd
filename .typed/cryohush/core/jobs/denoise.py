"""A whole denoising run: from a table, stack or micrograph to denoised ones, their table and a record."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ... import __version__
from ..config.denoise import PARTICLE_SHARE_OF_BOX, DenoiseOptions
from ..errors import ConfigurationError, OutputError
from ..imaging.normalise import background_mask
from ..inference.devices import resolve_devices
from ..inference.engine import Choices, Engine, LocalDevices, Task, tiling
from ..inference.plan import (
    CS_TABLE_NAME,
    MICROGRAPH_TABLE_NAME,
    TABLE_NAME,
    TABLE_NAMES,
    ImageSet,
    StackPlan,
    path_below,
    plan_stacks,
    read_images,
    refuse_to_replace_inputs,
    source_files,
    written_image_names,
)
from ..inference.summary import RECORD_NAME, Summary, read_samples, write_record
from ..io.files import part_path, writing_failed
from ..io.journal import JOURNAL_NAME, Journal
from ..io.micrographs import MicrographSet
from ..io.mrc import WriterState
from ..io.particles import ParticleSet
from ..models.weights import LoadedModel, load_model

# The journal's entry for what was chosen when the run began; no stack has an empty name.
_CHOICES = ""

OnMismatch = Literal["refuse", "anew"]


def run_denoise(
    source: str | Path,
    output_dir: str | Path,
    options: DenoiseOptions,
    *,
    root: Path | None = None,
    passthrough: Sequence[str | Path] = (),
    resume: bool = False,
    overwrite: bool = False,
    on_mismatch: OnMismatch = "refuse",
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda line: None,
    command: str | None = None,
    engine: Engine | None = None,
) -> Summary:
    """Denoise a table of particles or micrographs, a bare stack, or a single micrograph.

    `output_dir` gets one file per input file, under its own name; `particles.star`, `micrographs.star`, or
    `particles.cs` and `particles.csg`, if the input was such a table; `cryohush.json`; and the journal from
    which a killed run goes on. An image that the table names several times is written once. Inputs are never
    written to.

    Parameters
    ----------
    source
        `.star`, `.cs`, `.mrcs` or `.mrc`.
    output_dir
        Made if missing.
    options
        What to do.
    root
        Folder that the table's image names are relative to; see `ParticleSet.read`.
    passthrough
        Files that complete a `.cs` file; see `ParticleSet.read`.
    resume
        Go on with a run that was interrupted; without one, begin.
    overwrite
        Replace what an earlier run has left.
    on_mismatch
        What to do when the run to be resumed had other input or options: refuse, or begin anew.
    progress
        Called with the numbers of images done and in all, once per batch.
    should_stop
        Asked once per batch.
    log
        Gets the lines that a user should read.
    command
        The command line, for the record.
    engine
        Where to calculate, instead of on `options.device`.

    Raises
    ------
    InputError
        If the input cannot be read, or holds an image that cannot be denoised and `options.skip_bad` is off.
    OutputError
        If the directory holds another run, or the disk is full or too small.
    ModelError, DeviceError, ConfigurationError
        If the options cannot be met.
    Aborted
        If `should_stop` said so; the run can be resumed.
    """
    started, begin = time.time(), time.monotonic()
    output_dir = Path(output_dir)
    model = load_model(options.model)
    if engine is None:
        engine = LocalDevices(resolve_devices(options.device), options.threads)
    images = read_images(source, root=root, passthrough=passthrough)
    is_micrographs = isinstance(images, MicrographSet)
    stacks = plan_stacks(images, options.protein)
    _check_options(options, stacks, images)
    refuse_to_replace_inputs(images, stacks, output_dir)
    log(f"model {model.name}, SHA-256 {model.sha256[:16]}…")
    for path in source_files(images)[1:]:
        log(f"joined with {path}")
    n_images = sum(len(stack.indices) for stack in stacks)
    if is_micrographs:
        shapes = Counter(stack.shape for stack in stacks)
        log(", ".join(f"{count} micrographs of {_box(shape)} px" for shape, count in shapes.items()))
    else:
        log(f"{len(images)} particles, {n_images} images in {len(stacks)} stacks")

    with _open_journal(
        output_dir,
        _fingerprint(images, model, engine, options),
        [stack.name for stack in stacks],
        resume=resume,
        overwrite=overwrite,
        on_mismatch=on_mismatch,
        log=log,
    ) as journal:
        _check_free_space(images, stacks, output_dir, journal, options)
        choices = _choose(journal, engine, options, model, stacks, log, is_micrographs=is_micrographs)
        label = f"cryohush {__version__}: denoised by {Path(model.name).name}, not raw data"
        task = Task(model, options, choices, stacks, is_micrographs, label)
        result = engine.denoise(task, output_dir, journal, progress, should_stop)
        table = _write_table(images, stacks, output_dir)
    summary = Summary(
        kind="micrographs" if is_micrographs else "particles",
        source=images.source,
        options=options,
        output_dir=output_dir,
        table=table,
        stacks=[output_dir / stack.name for stack in stacks],
        record=output_dir / RECORD_NAME,
        model=model,
        devices=engine.names,
        precision=choices.precision,
        batch_sizes={_box(shape): size for shape, size in choices.batch_sizes.items()},
        threads=engine.threads,
        n_rows=len(images),
        n_images=n_images,
        n_resumed=n_images - result.n_written,
        skipped=result.skipped,
        remarks=result.remarks,
        seconds={"total": time.monotonic() - begin, **result.seconds},
        samples=read_samples(stacks, output_dir, result.skipped, are_micrographs=is_micrographs),
    )
    write_record(summary, command, started)
    return summary


@dataclass(frozen=True)
class RunSize:
    """What a run would read and write, and how much.

    Attributes
    ----------
    kind
        What the images are.
    n_images, n_pixels
        Of the images that would be written.
    bytes
        Of the files that would be written.
    inputs
        The files that would be read.
    """

    kind: Literal["particles", "micrographs"]
    n_images: int
    n_pixels: int
    bytes: int
    inputs: list[Path]


def measure_run(
    source: str | Path,
    output_dir: Path,
    options: DenoiseOptions,
    *,
    root: Path | None = None,
    passthrough: Sequence[str | Path] = (),
) -> RunSize:
    """Check all of a run that can be checked before it, and say how large it is; nothing is written.

    Raises
    ------
    CryohushError
        As `run_denoise`, but for pixels, devices and the room on the disk.
    """
    load_model(options.model)
    images = read_images(source, root=root, passthrough=passthrough)
    stacks = plan_stacks(images, options.protein)
    _check_options(options, stacks, images)
    refuse_to_replace_inputs(images, stacks, output_dir)
    n_pixels = sum(len(stack.indices) * stack.shape[0] * stack.shape[1] for stack in stacks)
    tables = source_files(images) if images.has_table else []
    return RunSize(
        "micrographs" if isinstance(images, MicrographSet) else "particles",
        sum(len(stack.indices) for stack in stacks),
        n_pixels,
        n_pixels * np.dtype(options.output_dtype).itemsize + sum(path.stat().st_size for path in tables),
        list(dict.fromkeys([*source_files(images), *images.stacks])),
    )


def _check_options(options: DenoiseOptions, stacks: Sequence[StackPlan], images: ImageSet) -> None:
    """Raise when an option that is a length in Å, or the circle, does not suit an image."""
    if isinstance(images, MicrographSet) and options.particle_diameter_angstrom is not None:
        raise ConfigurationError(
            "particle_diameter_angstrom is for particles, not micrographs. Leave it out."
        )
    for shape, pixel_size in {(stack.shape, stack.pixel_size_angstrom) for stack in stacks}:
        diameter = options.particle_diameter_angstrom
        if pixel_size is None:
            if diameter is not None or options.keep_above_angstrom is not None:
                raise ConfigurationError(
                    "particle_diameter_angstrom and keep_above_angstrom need a pixel size, and "
                    f"{images.source} does not say it. Leave them out, or give a table that does."
                )
            continue
        if diameter is None:
            continue
        try:
            background_mask(shape, diameter / pixel_size / 2)
        except ValueError as error:
            default = PARTICLE_SHARE_OF_BOX * min(shape) * pixel_size
            raise ConfigurationError(
                f"particle_diameter_angstrom {diameter:g}: {error}. Leave it out to get "
                f"{PARTICLE_SHARE_OF_BOX:g} of the box: {default:g} Å."
            ) from error


def _fingerprint(
    images: ImageSet, model: LoadedModel, engine: Engine, options: DenoiseOptions
) -> dict[str, Any]:
    """Return all that the pixels of the result depend on."""
    stacks = hashlib.sha256()
    for path in images.stacks:
        status = path.stat()
        stacks.update(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    result_of = options.model_dump(mode="json", exclude={"model", "device", "skip_bad", "threads"})
    return {
        "version": __version__,
        "input": _sha256(*source_files(images)) if images.has_table else images.source.name,
        "stacks": stacks.hexdigest(),
        "model": model.sha256,
        "device": engine.types,
        **result_of,
    }


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _open_journal(
    output_dir: Path,
    fingerprint: dict[str, Any],
    stack_names: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
    on_mismatch: OnMismatch,
    log: Callable[[str], None],
) -> Journal:
    """Open the journal to go on with, or clear the way for a new run.

    Raises
    ------
    OutputError
        If the directory holds another run and none of the arguments says what to do with it.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(output_dir, error) from error
    path = output_dir / JOURNAL_NAME
    if resume and path.exists():
        if on_mismatch == "refuse" or Journal.matches(path, fingerprint):
            log("an earlier run is there: going on with it")
            return Journal.open(path, fingerprint, resume=True)
        log("an earlier run is there with other input or options: starting anew")
    elif not overwrite and not (resume and on_mismatch == "anew"):
        occupants = [JOURNAL_NAME, *TABLE_NAMES, RECORD_NAME, *stack_names]
        for name in occupants:
            if (output_dir / name).exists():
                raise OutputError(
                    f"{output_dir} holds another run ({name}). Resume it (--resume), replace it "
                    "(--overwrite), or choose another directory."
                )
    journal = Journal.open(path, fingerprint, resume=False)
    # Otherwise an old table would name new images should this run be interrupted.
    for name in [*TABLE_NAMES, RECORD_NAME, *stack_names]:
        for old in (output_dir / name, part_path(output_dir / name)):
            old.unlink(missing_ok=True)
    return journal


def _check_free_space(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    output_dir: Path,
    journal: Journal,
    options: DenoiseOptions,
) -> None:
    """Raise when the disk cannot hold what is still to be written."""
    bytes_per_pixel = np.dtype(options.output_dtype).itemsize
    tables = source_files(images) if images.has_table else []
    needed = sum(path.stat().st_size for path in tables)
    for stack in stacks:
        if stack.name not in journal.finished:
            done = journal.states.get(stack.name, WriterState()).written
            needed += (len(stack.indices) - done) * stack.shape[0] * stack.shape[1] * bytes_per_pixel
    free = shutil.disk_usage(output_dir).free
    if needed > free:
        raise OutputError(
            f"{output_dir}: the disk is too small: {needed} bytes are needed, {free} are free. Free some "
            "space, choose another directory, or write float16 (half the size)."
        )


def _choose(
    journal: Journal,
    engine: Engine,
    options: DenoiseOptions,
    model: LoadedModel,
    stacks: Sequence[StackPlan],
    log: Callable[[str], None],
    *,
    is_micrographs: bool,
) -> Choices:
    """Return precision and batch sizes: those that the journal holds, or new ones, which it then holds."""
    recorded = journal.extras.get(_CHOICES)
    if recorded is not None:
        sizes = {(y, x): size for y, x, size in recorded["batch_sizes"]}
        choices, reason = Choices(recorded["precision"], sizes), "as when the run began"
    else:
        shapes = list(dict.fromkeys(stack.shape for stack in stacks))
        choices, reason = engine.choose(model, options, shapes, are_micrographs=is_micrographs)
        sizes = choices.batch_sizes
        recorded = {
            "precision": choices.precision,
            "batch_sizes": [[y, x, size] for (y, x), size in sizes.items()],
        }
        journal.record(_CHOICES, WriterState(), recorded)
    log(f"device {', '.join(engine.names)}, precision {choices.precision} ({reason})")
    if is_micrographs:
        tilings = {tiling(model, shape): size for shape, size in sizes.items()}
        log("tiles of " + ", ".join(f"{_box(t.tile)} px and {t.border_px} px around" for t in tilings))
    else:
        log("batches of " + ", ".join(f"{size} images of {_box(shape)} px" for shape, size in sizes.items()))
    return choices


def _box(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _write_table(images: ImageSet, stacks: Sequence[StackPlan], output_dir: Path) -> Path | None:
    if not images.has_table:
        return None
    if isinstance(images, ParticleSet) and images.is_cs:
        images.write_cs(output_dir / CS_TABLE_NAME, [stack.name for stack in stacks])
        return output_dir / CS_TABLE_NAME
    path = output_dir / (TABLE_NAME if isinstance(images, ParticleSet) else MICROGRAPH_TABLE_NAME)
    images.write(
        path,
        written_image_names(images, stacks, output_dir),
        absolute_originals=path_below(output_dir, images.root) is None,
    )
    return path
