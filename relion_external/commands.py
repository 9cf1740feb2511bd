"""The commands of `relion_cryohush`: RELION's options in, RELION's files out.

Each reads its parameters before anything heavy is imported, so that a mistyped one is told at once, does the
work that `core` knows how to do, and leaves the report and the table of RELION's outputs. Each raises
`CryohushError` with what the user should know, and `Aborted` when it was asked to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig, read_config
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.config.load import validate
from ..core.config.training import TrainingConfig
from ..core.errors import ConfigurationError, InputError, TableChanged, TooFewBlocks
from ..core.job_context import import_torch
from ..core.progress import counted
from ..core.report import PDF_NAME, quiet_matplotlib
from .host import finish
from .log import begin_log, say, warn
from .project import Kind, Project, write_output_nodes
from .request import Request, find_input, read_options, read_values
from .train_inputs import plan_runs, read_train_options, reference_map, set_device

if TYPE_CHECKING:
    from ..core.inference.summary import Summary

# 16-bit floating point, which RELION reads from version 4 on, and its mode in an MRC header.
_FLOAT16, _FLOAT16_MODE = "float16", 12


def _begin(request: Request, kind: Kind, source: str) -> Project:
    """Begin the log, and return the project that the job belongs to."""
    project = Project.of_job(request.directory, source, kind)
    begin_log(project, request.command)
    other: Kind = "micrographs" if kind == "particles" else "particles"
    unused = request.given.get("in_mics" if kind == "particles" else "in_parts")
    if unused:
        say(f"'Input {other}' {unused} is not used: this job works on the {kind} {source}")
    return project


def denoise(request: Request) -> None:
    """Denoise `in_parts` or `in_mics` into the job directory."""
    options = read_options(request.given, DenoiseOptions)
    kind, source = find_input(request.given)
    project = Project.of_job(request.directory, source, kind)
    if project.version == "3.1" and options.output_dtype == _FLOAT16:
        raise ConfigurationError(
            "output_dtype float16: RELION 3.1 cannot read float16 images. Leave the parameter out."
        )
    _begin(request, kind, source)
    import_torch()
    # Heavy. Nothing that a user can mistype is still unread by now.
    from .half_sets import half_models, warning

    if "output_dtype" not in options.model_fields_set:
        options = options.model_copy(update={"output_dtype": _same_format(source, project)})
    models = half_models(options.model) if kind == "particles" else None
    if models is not None:
        for name, is_given in (("limit", options.limit is not None), ("score", options.score)):
            if is_given:
                raise ConfigurationError(
                    f"{name} goes with one model, but {options.model} is a training of two, one per half "
                    "set. Leave it out, or give one of the two."
                )
        summary = _denoise_halves(request, source, options, models)
    else:
        if kind == "particles" and (line := warning(source, options.model)):
            request.warn(line)
        summary = _denoise_all(request, source, kind, options)
    for what, notes, in_all in (
        ("unchanged", summary.skipped, "images were passed through unchanged"),
        ("conspicuous", summary.remarks, "images are conspicuous"),
    ):
        warn([f"{what}: {note.image}@{note.stack}: {note.problem}" for note in notes], in_all)
    way_back = finish(summary, request.directory, project, kind, request.command, request.warnings)
    text = f"{counted(summary.n_rows, kind[:-1])} in {summary.table}"
    if summary.n_resumed:
        text += f", {counted(summary.n_resumed, 'image')} done by an earlier run"
    say(f"{text}\n{way_back}")


def _denoise_all(request: Request, source: str, kind: Kind, options: DenoiseOptions) -> Summary:
    """Denoise what a table lists, and what was added to it meanwhile: other jobs go on in a session."""
    from ..core.jobs.denoise import run_denoise

    while True:
        try:
            return run_denoise(
                source, request.directory, options, request.context(kind), root=Path.cwd(), earlier="anew"
            )
        except TableChanged:
            say(f"{source} has changed meanwhile: going on with what is new in it")


def _denoise_halves(
    request: Request, source: str, options: DenoiseOptions, models: Mapping[int, str]
) -> Summary:
    """Denoise each half set with the model of the other one, and leave one table of both."""
    import numpy as np

    from ..core.inference.plan import TABLE_NAME, chosen_images
    from ..core.inference.summary import Samples
    from ..core.jobs.denoise import run_denoise
    from .half_sets import HALVES, merged_names, shared_progress, split, trained_on

    folders = {half: request.directory / f"half{half}" for half in HALVES}
    parts = split(source, folders)
    context = request.context()
    progress = shared_progress(context.progress, parts.half)
    summaries = {}
    for half in HALVES:
        other = models[3 - half]
        say(f"half set {half}: denoised with {other}, which has learnt from the other half set")
        summaries[half] = run_denoise(
            parts.tables[half],
            folders[half],
            options.model_copy(update={"model": other}),
            replace(context, progress=progress[half]),
            root=Path.cwd(),
            earlier="anew",
        )
        learnt_from, _ = trained_on(summaries[half].model.card)
        if learnt_from != 3 - half:
            raise InputError(
                f"expected a model that has learnt from half set {3 - half}, found "
                f"{f'one of half set {learnt_from}' if learnt_from else 'none that says so'}.",
                path=Path(other),
            )
    # the halves have left out the rows of damaged files
    images, _, _ = chosen_images(source, options, root=Path.cwd())
    halves = parts.half if images.kept is None else list(compress(parts.half, images.kept))
    table = request.directory / TABLE_NAME
    images.write(table, merged_names(halves, {half: folders[half] / TABLE_NAME for half in HALVES}))
    first, second = (summaries[half] for half in HALVES)
    alike = first.samples.raw.shape[1:] == second.samples.raw.shape[1:]
    samples = first.samples
    if alike:
        samples = Samples(
            np.concatenate([first.samples.raw, second.samples.raw]),
            np.concatenate([first.samples.denoised, second.samples.denoised]),
            [*first.samples.titles, *second.samples.titles],
            first.samples.pixel_size_angstrom,
        )
    return replace(
        first,
        source=Path(source),
        output_dir=request.directory,
        table=table,
        stacks=[*first.stacks, *second.stacks],
        n_rows=first.n_rows + second.n_rows,
        n_images=first.n_images + second.n_images,
        n_resumed=first.n_resumed + second.n_resumed,
        skipped=[*first.skipped, *second.skipped],
        remarks=[*first.remarks, *second.remarks],
        damaged=list(dict.fromkeys([*first.damaged, *second.damaged])),
        warnings=list(dict.fromkeys([*first.warnings, *second.warnings])),
        seconds={name: first.seconds[name] + second.seconds[name] for name in first.seconds},
        samples=samples,
    )


def _same_format(source: str, project: Project) -> str:
    """Return float16 for images that are stored so, where this RELION can read it, else float32."""
    if project.version in (None, "3.1"):
        return "float32"
    from ..core.inference.plan import read_images
    from ..core.io.mrc import StackReader

    first = read_images(source, root=Path.cwd()).stacks[:1]
    for path in first:
        with StackReader(path) as reader:
            return _FLOAT16 if reader.mode == _FLOAT16_MODE else "float32"
    return "float32"


def evaluate(request: Request) -> None:
    """Evaluate the denoised `in_parts` or `in_mics`; what an earlier run of the job has left is replaced."""
    kind, source = find_input(request.given)
    config = read_evaluate_config(request.given, source)
    project = _begin(request, kind, source)
    # Heavy. Nothing that a user can mistype is still unread by now.
    import_torch()
    from ..core.jobs.evaluate import run_evaluate

    evaluation = run_evaluate(config, request.directory, request.context(kind), earlier="replace")
    finish(evaluation, request.directory, project, kind, request.command, request.warnings)
    for path in evaluation.files:
        say(f"wrote {path}")


def read_evaluate_config(given: Mapping[str, str | None], source: str) -> EvaluateConfig:
    """Return the configuration of a job; its parameters override its file.

    Parameters
    ----------
    given
        The command line. A parameter whose value was left empty counts as not given, but for `align_twin`,
        which it turns on.
    source
        The denoised images.

    Raises
    ------
    ConfigurationError
        If an option does not fit, or both `gpu` and `device` are given.
    """
    values = read_values(given, EvaluateConfig)
    path = given.get("config")
    for name in values.keys() & {"metrics", "baselines"}:
        values[name] = values[name].split(",")  # RELION's form would split them at blanks
    return read_config({**values, "denoised": source}, Path(path) if path else None)


def extract_noise(request: Request) -> None:
    """Cut blocks of noise out of `in_mics` into the job directory."""
    options = read_options(request.given, ExtractNoiseOptions)
    kind, source = find_input(request.given, "micrographs")
    project = _begin(request, kind, source)
    # Heavy. Nothing that a user can mistype is still unread by now.
    import_torch()
    from ..core.jobs.extract_noise import run_extract_noise
    from ..core.report.overlays import write_overlay

    try:
        summary = run_extract_noise(
            source,
            request.directory,
            options,
            request.context(kind),
            root=Path.cwd(),
            earlier="anew",
            draw=write_overlay,
        )
    except TooFewBlocks as error:
        raise _explained(error, request) from error
    for count in summary.counts:
        if count.remark:
            request.warn(f"{count.micrograph}: {count.remark}")
    finish(summary, request.directory, project, kind, request.command, request.warnings)
    blocks = counted(summary.n_blocks, "block")
    say(f"{blocks} of {summary.window_px} px in {summary.table}\n{summary.explanation}")


def _explained(error: TooFewBlocks, request: Request) -> TooFewBlocks:
    """Show what was in the way of a search that found nothing, and name the pictures in the error."""
    from ..core.noise.output import OVERLAYS_FOLDER
    from ..core.report.noise import report_failed_noise

    overlays = sorted((request.directory / OVERLAYS_FOLDER).rglob("*.png"))
    if not overlays:
        return error
    pdf = report_failed_noise(request.directory, str(error), overlays, request.command)
    seen = f"What was in the way is to be seen in {pdf} and {request.directory / OVERLAYS_FOLDER}."
    return TooFewBlocks(error.problem, path=error.path, remedy=" ".join(filter(None, (error.remedy, seen))))


def train(request: Request) -> None:
    """Train a model on `in_parts` with `in_3dref`, on other images of the same particles, or on half frames.

    `weights.safetensors` lies in the job directory; with `half_sets` in its folders `half1` and `half2`. A
    continued job goes on from its last checkpoint, or begins anew where a parameter has changed.
    """
    directory, given = request.directory, request.given
    options = read_train_options(given)
    kind, source = find_input(given, "micrographs" if given.get("in_mics") else "particles")
    runs = plan_runs(directory, options, given, source)
    project = Project.of_job(directory, source, kind)
    begin_log(project, request.command)
    set_device(options)
    # it says on stderr which number format it uses
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    import_torch()
    # Heavy. Nothing that a user can mistype is still unread by now, but for the model's name.
    from ..core.jobs.train import train as run_training
    from ..core.report.training import write_training_report
    from ..core.training.run import with_network
    from .train_inputs import held_out_scores

    if kind == "particles":
        facts = {"particles": source, "counterparts": str(options.twin or reference_map(given))}
    else:
        where = given.get("in_parts") or given.get("in_coords") or "anywhere"
        facts = {"even and odd frames": source, "boxes": where}
    verdicts = []
    for folder, values in runs.items():
        part = "" if folder == directory else f"{folder.name}: "
        config = with_network(validate(values, TrainingConfig, "parameters"))
        facts["begun with"] = str(config.initial_weights or "random weights")
        weights = run_training(config, folder, request.context("steps"), earlier="anew")
        before, after = held_out_scores(config, folder, weights)
        if before is not None and after >= before:
            request.warn(
                f"{part}on held-out particles the model is no better than the one it began with: use that"
            )
        told = f"{after:.4f}" if before is None else f"{before:.4f} before, {after:.4f} after"
        say(f"{part}held-out particles, error (lower is better): {told}")
        verdicts.append(f"{part or 'On held-out particles: '}error {told} the training (lower is better).")
        say(f"wrote {weights}; the next job takes it as model {folder}")
        facts[f"{part}learnt from"] = _learnt_from(weights)
    if len(runs) > 1:
        say(f"model {directory} denoises each half set with the model of the other one")
    facts |= {"model": str(directory), "command": request.command}
    write_training_report(
        directory,
        list(runs),
        headline="A model trained on your particles",
        facts=facts,
        verdict=" ".join(verdicts),
        warnings=request.warnings,
    )
    write_output_nodes(directory, project, table=None, pdf=PDF_NAME)


def _learnt_from(weights: Path) -> str:
    from ..core.models.weights import load_model
    from .half_sets import trained_on

    return trained_on(load_model(weights).card)[1]


def raw_picks(request: Request) -> None:
    """Bring the picks of `in_coords` from denoised micrographs to the raw ones."""
    from .raw_picks import write_raw_picks

    source = request.given.get("in_coords")
    if not source or not source.endswith(".star"):
        raise ConfigurationError(
            f"expected a list of coordinates, found {source or 'nothing'}. Fill in the field 'Input "
            "coordinates' on the Input tab of the External job, such as AutoPick/job006/autopick.star."
        )
    project = Project.of_job(request.directory, source, "coordinates")
    begin_log(project, request.command)
    path, n_rows, n_changed = write_raw_picks(source, request.directory)
    write_output_nodes(request.directory, project, table=path.name, pdf=None, kind="coordinates")
    say(f"{n_changed} of {n_rows} micrographs in {path} are the raw ones now: extract with this list")


def follow(request: Request) -> None:
    """Follow the source of a batch until its end."""
    from .follow import follow as follow_batch

    follow_batch(request.directory, request.should_stop)


COMMANDS: dict[str, Callable[[Request], None]] = {
    "denoise": denoise,
    "evaluate": evaluate,
    "extract-noise": extract_noise,
    "train": train,
    "raw-picks": raw_picks,
    "follow": follow,
}


def run(request: Request) -> None:
    """Run the command that the request names."""
    quiet_matplotlib()
    COMMANDS[str(request.given["command"])](request)
