"""A whole denoising run: from a table, stack or micrograph to denoised ones, their table and a record."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..config.denoise import CONTEXT_NAME, PARTICLE_SHARE_OF_BOX, DenoiseOptions
from ..context.contexts import StackContexts
from ..errors import ConfigurationError, InputError, TableChanged, several
from ..imaging.normalise import background_mask
from ..inference.denoiser import Denoiser
from ..inference.devices import LocalDevices, Precision, resolve_devices
from ..inference.engine import Choices, Task, choose, tiling
from ..inference.inputs import look_at_inputs
from ..inference.plan import (
    CS_TABLE_NAME,
    CSG_NAME,
    MICROGRAPH_TABLE_NAME,
    TABLE_NAME,
    ImageSet,
    StackPlan,
    chosen_images,
    path_below,
    plan_stacks,
    refuse_to_replace_inputs,
    source_files,
    written_image_names,
)
from ..inference.stream import StreamResult, n_safely_written, recorded_notes
from ..inference.summary import ErrorOf, Summary, read_samples, write_record
from ..io.files import file_state, sha256_of
from ..io.journal import RANGES_FOLDER, RECORD_NAME, Journal, Undertaking
from ..io.micrographs import MicrographSet
from ..io.mrc import WriterState
from ..io.mrc_header import label_of_denoised
from ..io.particles import ParticleSet
from ..job_context import QUIET, JobContext
from ..models.weights import LoadedModel, Weights, load_model
from ..progress import counted
from ..report import PDF_NAME, PNG_NAME
from .contexts import contexts_of
from .denoise_parts import DenoiseWork
from .folder import Earlier, JobFolder
from .job import Devices
from .scores import SUSPICIOUS, TRUSTED, Scores, keep_rows, score_particles
from .self_measurement import measure_gain
from .trust import error_name, error_teller, write_error_stack

# Conspicuous images that are named one by one.
WARNINGS = 8
# The journal's entry for what was chosen when the run began; no stack has an empty name.
_CHOICES = ""


def run_denoise(
    source: str | Path,
    output_dir: str | Path,
    options: DenoiseOptions,
    context: JobContext = QUIET,
    *,
    root: Path | None = None,
    passthrough: Sequence[str | Path] = (),
    earlier: Earlier = "refuse",
    devices: Devices | None = None,
) -> Summary:
    """Denoise a table of particles or micrographs, a bare stack, or a single micrograph.

    `output_dir` gets one file per input file, under its own name; `particles.star`, `micrographs.star`, or
    `particles.cs` and `particles.csg`, if the input was such a table; `cryohush.json`; and the journal from
    which a killed run goes on. An image that the table names several times is written once. Inputs are never
    written to.

    A run that goes on keeps each file whose source, images, options and model are still the same. So a table
    that has grown costs only what is new in it. (Images at the seams of what was done and what is new were
    computed in other batches than in one run on the whole table, which can change their last bit.)

    Parameters
    ----------
    source
        `.star`, `.cs`, `.mrcs` or `.mrc`.
    output_dir
        Made if missing.
    options
        What to do.
    context
        Whom to ask and tell.
    root
        Folder that the table's image names are relative to; see `ParticleSet.read`.
    passthrough
        Files that complete a `.cs` file; see `ParticleSet.read`.
    earlier
        What to do with an earlier run in the directory; see `jobs.folder`.
    devices
        Where to calculate, instead of on `options.device`.

    Raises
    ------
    InputError
        If the input cannot be read, holds an image that cannot be denoised and `options.skip_bad` is off, or
        was changed while the run went on.
    OutputError
        If the directory holds another run, or the disk is full or too small.
    ModelError, DeviceError, ConfigurationError
        If the options cannot be met.
    Aborted
        If `context.should_stop` said so; the run can be resumed.
    """
    started, begin = time.time(), time.monotonic()
    output_dir, log = Path(output_dir), context.log
    model = load_model(options.model)
    if devices is None:
        devices = LocalDevices(resolve_devices(options.device), options.threads)
    images, damaged, n_rows = chosen_images(source, options, root=root, passthrough=passthrough)
    is_micrographs = isinstance(images, MicrographSet)
    trained_angstrom = model.trained_pixel_sizes_angstrom
    stacks = plan_stacks(
        images,
        options.protein,
        pixel_size_angstrom=options.pixel_size_angstrom,
        trained_angstrom=trained_angstrom,
    )
    _check_options(options, stacks, images)
    notes = look_at_inputs(images, stacks, trained_angstrom)
    for fact in notes.facts:
        log(fact)
    if damaged:
        log(f"warning: {several(damaged, len(damaged) + len(stacks), 'files')} Their rows are left out.")
    for warning in notes.warnings:
        log(f"warning: {warning}")
    if options.limit is not None and options.limit < n_rows:
        noun = "micrographs" if is_micrographs else "particles"
        log(f"a trial: only the first {options.limit} of {counted(n_rows, noun.removesuffix('s'))}")
    undertaking = _undertaking(images, stacks, model, devices, options)
    log(f"model {model.name}, SHA-256 {model.sha256[:16]}…")
    for path in source_files(images)[1:]:
        log(f"joined with {path}")
    n_images = sum(len(stack.indices) for stack in stacks)
    if is_micrographs:
        shapes = Counter(stack.shape for stack in stacks)
        log(
            ", ".join(
                f"{counted(count, 'micrograph')} of {_box(shape)} px" for shape, count in shapes.items()
            )
        )
    else:
        rows, files = counted(len(images), "particle"), counted(len(stacks), "stack")
        log(f"{rows}, {counted(n_images, 'image')} in {files}")

    inputs = [*source_files(images), *images.stacks]
    with JobFolder(output_dir, undertaking, earlier, inputs=inputs, log=log) as folder:
        journal = folder.journal
        was_complete = journal.is_complete
        if was_complete:
            choices = _recorded_choices(journal)
            assert choices is not None  # a run that is complete has made them
            result = StreamResult(*recorded_notes(stacks, journal))
        else:
            _check_room(folder, images, stacks, options)
            choices = _choose(journal, devices, options, model, stacks, log, is_micrographs=is_micrographs)
            found = contexts_of(images, stacks, model, options, output_dir, goes_on=folder.goes_on, log=log)
            label = label_of_denoised(Path(model.name).name)
            weights = Weights.of(model)
            task = Task(weights, options, choices, stacks, is_micrographs, label, found.contexts)
            work = DenoiseWork(task, output_dir, journal)
            devices.do(work, context)
            result = work.result
            gain = _measure(images, stacks, model, options, choices, found.contexts, log)
            scores = _score(images, stacks, result, options, output_dir, context)
            error_of = None
            if not is_micrographs:
                denoiser = Denoiser(model.module, "cpu", _on_cpu(choices.precision))
                error_of = error_teller(denoiser, options, found.contexts)
            if options.error_stacks:
                _write_errors(stacks, error_of, journal, output_dir, context)
            _refuse_changed_inputs(images, stacks, undertaking, options)
            _write_table(images, stacks, output_dir, scores)
        table = _table_files(images)
        summary = Summary(
            kind="micrographs" if is_micrographs else "particles",
            source=images.source,
            options=options,
            output_dir=output_dir,
            table=output_dir / table[0] if table else None,
            stacks=[output_dir / stack.name for stack in stacks],
            record=output_dir / RECORD_NAME,
            model=model,
            devices=devices.names,
            precision=choices.precision,
            batch_sizes={_box(shape): size for shape, size in choices.batch_sizes.items()},
            threads=devices.threads,
            n_rows=len(images),
            n_images=n_images,
            n_resumed=n_images - result.n_written,
            skipped=result.skipped,
            remarks=result.remarks,
            damaged=[str(error) for error in damaged],
            warnings=notes.warnings,
            pixel_sizes=notes.pixel_sizes,
            seconds={"total": time.monotonic() - begin, **result.seconds},
            samples=read_samples(
                stacks,
                output_dir,
                result.skipped,
                are_micrographs=is_micrographs,
                error_of=None if was_complete else error_of,
            ),
            was_complete=was_complete,
            suspicious=None if was_complete or scores is None else int(scores.suspicious.sum()),
            parts=_parts_there(images, options, output_dir),
            context={} if was_complete else found.record,
            gain={} if was_complete else gain,
        )
        if not was_complete:
            write_record(summary, context.command, started)
            split = [] if scores is None else _split_files(images, options)
            errors = _error_names(stacks, options) if error_of is not None else []
            journal.complete([*(stack.name for stack in stacks), *table, *split, *errors, RECORD_NAME])
    return summary


def denoise(
    source: str | Path,
    output_dir: str | Path,
    options: DenoiseOptions,
    context: JobContext = QUIET,
    *,
    way_back: str = "",
    **given: Any,
) -> Summary:
    """Run `run_denoise`, which takes whatever else is given, and report on it in the folder and the log.

    Parameters
    ----------
    way_back
        How to return to the raw images in the host that the job runs in; for the report.
    """
    summary = run_denoise(source, output_dir, options, context, **given)
    log = context.log
    done = counted(summary.n_images, summary.noun.removesuffix("s"))
    log(f"{done} in {summary.seconds['total']:.1f} s, {summary.speed}")
    if summary.skipped:
        log(f"{counted(len(summary.skipped), 'bad image')} went through unchanged: see {summary.record}")
    for problem, notes in summary.remarks_by_kind()[:WARNINGS]:
        first = f"{notes[0].stack}, image {notes[0].image}" if summary.kind == "particles" else notes[0].stack
        log(f"warning: {first}{f' and {len(notes) - 1} more' if len(notes) > 1 else ''}: {problem}")
    if summary.remarks:
        log(f"{counted(len(summary.remarks), 'conspicuous image')}: see {summary.record}")
    paths = [summary.table, *summary.parts] if summary.table else summary.stacks
    for path in (*paths, summary.record):
        log(f"wrote {path}")
    if summary.table is not None and summary.table.suffix == ".cs":
        log(f"wrote {summary.table.with_suffix('.csg')}, for cryoSPARC's job Import Result Group")
    from ..report.pdf import report_run

    # a run that was killed while it drew has all but this
    if not summary.was_complete or not (summary.output_dir / PDF_NAME).exists():
        for path in report_run(summary, context.command or "", way_back=way_back):
            log(f"wrote {path}")
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
    images, _, _ = chosen_images(source, options, root=root, passthrough=passthrough)
    stacks = plan_stacks(images, options.protein, pixel_size_angstrom=options.pixel_size_angstrom)
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


# What the denoised images do not depend on; the model counts by its weights, the device by its kind.
_NOT_OF_THE_IMAGES = {"model", "device", "skip_bad", "threads", "score", "error_stacks"}


def _undertaking(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    model: LoadedModel,
    devices: Devices,
    options: DenoiseOptions,
) -> Undertaking:
    """Return the files to make, each with all that its bytes depend on."""
    result_of = options.model_dump(mode="json", exclude=_NOT_OF_THE_IMAGES)
    fingerprint = {
        "version": __version__,
        "input": [str(path.absolute()) for path in source_files(images)],
        "model": model.sha256,
        "device": devices.types,
        **result_of,
    }
    others = [
        *_table_files(images)[1:],
        *_split_files(images, options),
        RECORD_NAME,
        PDF_NAME,
        PNG_NAME,
        CONTEXT_NAME,
    ]
    return Undertaking("denoise", fingerprint, _digests(images, stacks, options), others, [RANGES_FOLDER])


def _digests(images: ImageSet, stacks: Sequence[StackPlan], options: DenoiseOptions) -> dict[str, str]:
    """Return for each file to make a digest of what it is made of.

    Raises
    ------
    InputError
        If something of it is gone.
    """
    digests = {}
    for stack in stacks:
        digest = hashlib.sha256(file_state(stack.source).encode(errors="surrogateescape"))
        digest.update(f"\0{stack.shape} {stack.pixel_size_angstrom} {stack.protein_dark}\0".encode())
        digest.update(stack.indices.astype("<i4").tobytes())
        digests[stack.name] = digest.hexdigest()[:32]
        if options.error_stacks:
            digests[error_name(stack)] = digest.hexdigest()[:32]
    for name in _table_files(images)[:1]:
        # the names in it are those of the stacks, relative to the root
        scored = ["scored"] if options.score else []
        names = "\0".join([str(images.root.absolute()), *scored, *(stack.name for stack in stacks)])
        digests[name] = sha256_of(*source_files(images), salt=names)
    return digests


def _refuse_changed_inputs(
    images: ImageSet, stacks: Sequence[StackPlan], undertaking: Undertaking, options: DenoiseOptions
) -> None:
    """Raise when what was read is not what is there now: the results would belong to neither.

    Raises
    ------
    TableChanged
        If it is the table alone.
    InputError
        Names the first image file.
    """
    now = _digests(images, stacks, options)
    sources = {stack.name: stack.source for stack in stacks}
    changed = [name for name, digest in undertaking.parts.items() if now[name] != digest]
    if changed:
        name = next((name for name in changed if name in sources), changed[0])
        error = InputError if name in sources else TableChanged
        raise error(
            "the file was changed while it was in use.",
            path=sources.get(name, images.source),
            remedy="Run again with --resume, which does again what was made of it and keeps the rest.",
        )


def _table_files(images: ImageSet) -> list[str]:
    """Return the names of the table, and of what goes with it."""
    if not images.has_table:
        return []
    if isinstance(images, MicrographSet):
        return [MICROGRAPH_TABLE_NAME]
    return [CS_TABLE_NAME, CSG_NAME] if images.is_cs else [TABLE_NAME]


def _check_room(
    folder: JobFolder, images: ImageSet, stacks: Sequence[StackPlan], options: DenoiseOptions
) -> None:
    """Raise when the disk cannot hold what is still to be written."""
    journal, bytes_per_pixel = folder.journal, np.dtype(options.output_dtype).itemsize
    needed = sum(path.stat().st_size for path in source_files(images)) if images.has_table else 0
    for stack in stacks:
        done = n_safely_written(stack, folder.path, journal, options.output_dtype)
        needed += (len(stack.indices) - done) * stack.shape[0] * stack.shape[1] * bytes_per_pixel
    folder.check_room(needed, "write float16 (half the size)")


def _recorded_choices(journal: Journal) -> Choices | None:
    recorded = journal.extras.get(_CHOICES)
    if recorded is None:
        return None
    return Choices(recorded["precision"], {(y, x): size for y, x, size in recorded["batch_sizes"]})


def _choose(
    journal: Journal,
    devices: Devices,
    options: DenoiseOptions,
    model: LoadedModel,
    stacks: Sequence[StackPlan],
    log: Callable[[str], None],
    *,
    is_micrographs: bool,
) -> Choices:
    """Return precision and batch sizes: those that the journal holds, or new ones, which it then holds."""
    choices, reason = _recorded_choices(journal), "as when the run began"
    sizes = {} if choices is None else choices.batch_sizes
    shapes = [shape for shape in dict.fromkeys(stack.shape for stack in stacks) if shape not in sizes]
    weights = Weights.of(model)
    if shapes:
        if choices is None:
            choices, reason = devices.ask(choose, weights, options, shapes, is_micrographs)
        else:  # the table has grown by images of another size
            same = options.model_copy(update={"precision": choices.precision})
            more, _ = devices.ask(choose, weights, same, shapes, is_micrographs)
            choices = Choices(choices.precision, {**sizes, **more.batch_sizes})
        sizes = choices.batch_sizes
        recorded = {
            "precision": choices.precision,
            "batch_sizes": [[y, x, size] for (y, x), size in sizes.items()],
        }
        journal.record(_CHOICES, WriterState(), recorded)
    assert choices is not None  # there is a shape
    log(f"device {', '.join(devices.names)}, precision {choices.precision} ({reason})")
    if is_micrographs:
        tilings = {tiling(model, shape): size for shape, size in sizes.items()}
        log("tiles of " + ", ".join(f"{_box(t.tile)} px and {t.border_px} px around" for t in tilings))
    else:
        log("batches of " + ", ".join(f"{size} images of {_box(shape)} px" for shape, size in sizes.items()))
    return choices


def _measure(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    model: LoadedModel,
    options: DenoiseOptions,
    choices: Choices,
    contexts: StackContexts | None,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return what the particles themselves say of the gain, for the record."""
    if not isinstance(images, ParticleSet):
        return {}
    sizes = {stack.pixel_size_angstrom for stack in stacks}
    found = measure_gain(
        images,
        model,
        options,
        choices.precision,
        contexts,
        frozenset(number for number, stack in enumerate(stacks) if stack.protein_dark),
        sizes.pop() if len(sizes) == 1 else None,
    )
    log(found["verdict"])
    return found


def _box(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _split_files(images: ImageSet, options: DenoiseOptions) -> list[str]:
    """Return the names of the tables of trusted and suspicious particles, and of what goes with them."""
    names = [Path(name) for name in _table_files(images)]
    if not options.score or not isinstance(images, ParticleSet):
        return []
    return [f"{name.stem}_{part}{name.suffix}" for part in (TRUSTED, SUSPICIOUS) for name in names]


def _error_names(stacks: Sequence[StackPlan], options: DenoiseOptions) -> list[str]:
    return [error_name(stack) for stack in stacks] if options.error_stacks else []


def _on_cpu(precision: Precision) -> Precision:
    """The number format in which the CPU looks at some images of a run."""
    return "fp32" if precision == "fp16" else precision


def _write_errors(
    stacks: Sequence[StackPlan],
    error_of: ErrorOf | None,
    journal: Journal,
    output_dir: Path,
    context: JobContext,
) -> None:
    """Write the stacks of expected errors that are not there yet."""
    if error_of is None:
        context.log("warning: no stacks of errors: this model does not know the errors of such images")
        return
    for stack in stacks:
        if not journal.is_finished(error_name(stack)):
            context.log(f"expected errors of {stack.source.name}")
            write_error_stack(
                stack,
                output_dir,
                error_of,
                lambda: context.stop_if_asked("stopped while writing expected errors; --resume goes on"),
            )
            journal.finish(error_name(stack))


def _parts_there(images: ImageSet, options: DenoiseOptions, output_dir: Path) -> list[Path]:
    paths = [output_dir / name for name in _split_files(images, options) if not name.endswith(".csg")]
    return [path for path in paths if path.exists()]


def _score(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    result: StreamResult,
    options: DenoiseOptions,
    output_dir: Path,
    context: JobContext,
) -> Scores | None:
    """Score the particles if that is wanted, and say what came of it."""
    if not options.score:
        return None
    if not isinstance(images, ParticleSet) or not images.has_table:
        context.log("warning: no scores: they need a table of particles")
        return None
    unchanged = frozenset((note.stack, note.image) for note in result.skipped)
    scores = score_particles(
        images,
        stacks,
        output_dir,
        options,
        unchanged,
        lambda: context.stop_if_asked("stopped while scoring; --resume goes on"),
    )
    if isinstance(scores, str):
        context.log(f"warning: no scores: {scores}")
        return None
    context.log(f"{int(scores.suspicious.sum())} of {counted(len(images), 'particle')} look suspicious")
    return scores


def _write_table(
    images: ImageSet, stacks: Sequence[StackPlan], output_dir: Path, scores: Scores | None
) -> None:
    names = [stack.name for stack in stacks]
    for name in _table_files(images)[:1]:
        path = output_dir / name
        if isinstance(images, MicrographSet):
            images.write(
                path,
                written_image_names(images, stacks, output_dir),
                absolute_originals=path_below(output_dir, images.root) is None,
            )
        elif images.is_cs:
            of_row = None if scores is None else scores.of_row
            images.write_cs(path, names, of_row)
            for part, chosen in _parts(scores):
                images.write_cs(path.with_stem(f"{path.stem}_{part}"), names, of_row, chosen)
        else:
            images.write(
                path,
                written_image_names(images, stacks, output_dir),
                absolute_originals=path_below(output_dir, images.root) is None,
                scores=None if scores is None else scores.of_row.tolist(),
            )
            for part, chosen in _parts(scores):
                keep_rows(path, path.with_stem(f"{path.stem}_{part}"), chosen)


def _parts(scores: Scores | None) -> list[tuple[str, NDArray[np.bool_]]]:
    return [] if scores is None else [(TRUSTED, ~scores.suspicious), (SUSPICIOUS, scores.suspicious)]
