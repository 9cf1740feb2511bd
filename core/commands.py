"""What the commands of `cryohush` do with their words: options made of them, the job run, its files named.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .console import complain, in_one_line, is_quiet, note, say, show
from .errors import Aborted, ConfigurationError, CryohushError, missing_package
from .job_context import JobContext, import_torch
from .progress import ProgressText, counted

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .batch.sources import Host
    from .jobs.folder import Earlier

Options = TypeVar("Options", bound="BaseModel")
# What a folder stands for.
IMAGE_SUFFIXES, MICROGRAPH_SUFFIXES = (".mrc", ".mrcs", ".star", ".cs"), (".mrc", ".star")
# Without a terminal, progress is a line each time this much more is done.
PROGRESS_PERCENT = 5
# So many inputs that failed are named at the end.
_NAMED = 3


def denoise_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.denoise import DenoiseOptions

    options = _options(arguments, DenoiseOptions)
    if arguments.print_config:
        _print_config(options)
        return

    from .inference.plan import holds_micrographs

    def work(source: Path, output: Path) -> None:
        def noun() -> str:
            return "micrographs" if holds_micrographs(source) else "images"

        given: dict[str, Any] = {"root": arguments.root, "passthrough": arguments.passthrough}
        import_torch()
        with _context(arguments, should_stop, noun) as context:
            if arguments.preview is not None:
                from .jobs.preview import preview

                preview(source, output, options, arguments.preview, context, **given)
            else:
                from .jobs.denoise import denoise

                denoise(source, output, options, context, earlier=_earlier(arguments), **given)

    _for_each(arguments, IMAGE_SUFFIXES, work)
    if arguments.preview is not None:
        say("nothing else was written: run the same command without --preview to denoise everything")


def _options(arguments: argparse.Namespace, model: type[Options]) -> Options:
    """Return the options of a command line, on top of those of its --config."""
    from .config.base import given_options
    from .config.load import COMMAND_LINE, load_yaml, validate

    given = given_options(vars(arguments), model)
    if arguments.config is not None:
        given = load_yaml(arguments.config, model).model_dump(exclude_unset=True) | given
    return validate(given, model, COMMAND_LINE)


def _print_config(config: BaseModel | type[BaseModel], leave_out: Collection[str] = ()) -> None:
    """Print the values of a configuration, or what one can hold, as a YAML file."""
    from .config.reference import as_yaml, blank_yaml

    show((blank_yaml(config) if isinstance(config, type) else as_yaml(config, leave_out)).rstrip())


def _for_each(
    arguments: argparse.Namespace, suffixes: Sequence[str], work: Callable[[Path, Path], None]
) -> None:
    """Do the work for each input; what is wrong with one is told, and the others go on."""
    from .io.inputs import find_inputs, folder_names

    found = find_inputs(arguments.input, suffixes)
    if found.is_single:
        work(found.paths[0], arguments.output)
        return
    failed = list(found.problems)
    for error in found.problems.values():
        complain(f"error: {error}")
    for number, (path, name) in enumerate(zip(found.paths, folder_names(found.paths), strict=True), 1):
        say(f"{number} of {counted(len(found.paths), 'input')}: {path}")
        try:
            work(path, arguments.output / name)
        except Aborted:
            raise
        except Exception as error:
            complain(f"error: {in_one_line(error)}")
            failed.append(str(path))
    if failed:
        total = len(found.paths) + len(found.problems)
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise CryohushError(
            f"{len(failed)} of {counted(total, 'input')} failed: {', '.join(failed[:_NAMED])}{more}"
        )


@contextlib.contextmanager
def _context(
    arguments: argparse.Namespace,
    should_stop: Callable[[], bool],
    noun: Callable[[], str] = lambda: "images",
) -> Iterator[JobContext]:
    """Yield what a job asks and tells: lines on stdout, progress on stderr or stdout."""
    with shown_progress(noun) as progress:
        yield JobContext(progress, should_stop, say, arguments.command_line)


def _earlier(arguments: argparse.Namespace) -> Earlier:
    """Return what is to be done with an earlier run in the output directory."""
    if arguments.resume:
        return "resume"
    return "replace" if arguments.overwrite else "refuse"


@contextlib.contextmanager
def shown_progress(noun: Callable[[], str] = lambda: "images") -> Iterator[Callable[[int, int], None]]:
    """Yield a progress callback: a bar on a terminal, otherwise a line for every few per cent.

    `noun` tells what is counted; it is asked once counting begins, when the input was found sound.
    """
    last, text = -PROGRESS_PERCENT, ProgressText()

    def line(done: int, total: int) -> str | None:
        """What is to be said now; None for nothing."""
        nonlocal last, text
        if last < 0:
            text = ProgressText(noun())
        words, percent = text(done, total), 100 * done // max(total, 1)
        if percent < last + PROGRESS_PERCENT and not (done == total and percent > last):
            return None
        last = percent
        return words

    if is_quiet() or not sys.stderr.isatty():

        def tell(done: int, total: int) -> None:
            if (words := line(done, total)) is not None:
                say(words)

        yield tell
        return
    from tqdm import tqdm

    with tqdm(unit=" images", smoothing=0.1) as bar:

        def draw(done: int, total: int) -> None:
            if bar.total is None:
                bar.unit = f" {noun()}"
                bar.reset(total)
                bar.initial = done
            bar.update(done - bar.n)
            if (words := line(done, total)) is not None:
                note(words)

        yield draw


def simulate_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.load import load_kind
    from .config.micrographs import MicrographsConfig
    from .config.simulate import ParticlesConfig

    kinds: dict[str, type[BaseModel]] = {"particles": ParticlesConfig, "micrographs": MicrographsConfig}
    if arguments.config is None:
        _print_config(kinds[arguments.kind or "particles"])
        return
    overrides = [*arguments.overrides, *([f"kind={arguments.kind}"] if arguments.kind else [])]
    config = load_kind(arguments.config, kinds, overrides)
    if arguments.print_config:
        _print_config(config)
        return
    import_torch()
    try:
        from .jobs.simulate import simulate
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    assert isinstance(config, ParticlesConfig | MicrographsConfig)  # one of the kinds
    with _context(arguments, should_stop) as context:
        simulate(config, arguments.output, context, device=arguments.device, earlier=_earlier(arguments))


def extract_noise_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.extract_noise import ExtractNoiseOptions

    options = _options(arguments, ExtractNoiseOptions)
    if arguments.print_config:
        _print_config(options)
        return

    import_torch()
    from .jobs.extract_noise import extract_noise

    def work(source: Path, output: Path) -> None:
        with _context(arguments, should_stop, lambda: "micrographs") as context:
            extract_noise(source, output, options, context, root=arguments.root, earlier=_earlier(arguments))

    _for_each(arguments, MICROGRAPH_SUFFIXES, work)


def train_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.load import find_preset, load_kind
    from .config.nt2c import Nt2cConfig
    from .config.segmentation import SegmentationConfig
    from .config.training import TrainingConfig

    kinds: dict[str, type[BaseModel]] = {
        "denoiser": TrainingConfig,
        "segmentation": SegmentationConfig,
        "nt2c": Nt2cConfig,
    }
    if arguments.config is None:
        _print_config(TrainingConfig)
        return
    config = load_kind(find_preset(arguments.config), kinds, arguments.overrides)
    if arguments.print_config:
        # a network that is not in effect would be taken for one that is asked for
        taken = isinstance(config, TrainingConfig) and config.takes_network
        _print_config(config, leave_out=("network",) if taken else ())
        return
    import_torch()
    try:
        from .jobs.train import train
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    assert isinstance(config, TrainingConfig | SegmentationConfig | Nt2cConfig)  # one of the kinds
    with _context(arguments, should_stop, lambda: "steps") as context:
        train(config, arguments.output, context, earlier=_earlier(arguments))


def evaluate_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.base import given_options
    from .config.evaluate import EvaluateConfig, read_config

    given = vars(arguments)
    options = {**given_options(given, EvaluateConfig), **_pairs(given)}
    if arguments.print_config and not options and arguments.config is None:
        _print_config(EvaluateConfig)
        return
    config = read_config(options, arguments.config, arguments.overrides)
    if arguments.print_config:
        _print_config(config)
        return

    import_torch()
    from .jobs.evaluate import evaluate

    with _context(arguments, should_stop) as context:
        evaluate(config, arguments.output, context, earlier=_earlier(arguments))


def _pairs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what --pairs and --mask stand for: half maps, if both files are cubic `.mrc` volumes."""
    from .io.mrc import StackReader

    def is_volume(name: str) -> bool:
        if not name.endswith(".mrc"):
            return False
        with StackReader(name) as reader:
            return len(set(reader.shape)) == 1

    if "pairs" not in given:
        if "mask" in given:
            raise ConfigurationError("--mask goes with --pairs of two half maps (.mrc).")
        return {}
    if "denoised" in given:
        raise ConfigurationError("--pairs names the denoised images itself: leave --denoised out.")
    first, second = given["pairs"]
    if is_volume(first) and is_volume(second):
        return {"half_maps": {"first": first, "second": second, "mask": given.get("mask")}}
    if "mask" in given:
        raise ConfigurationError("--mask goes with --pairs of two half maps (.mrc).")
    return {"denoised": first, "twin": second}


def run_plan(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    """Do what `batch` is asked for; `arguments` have `command_line` and `hosts`, too, as `main` sets them."""
    from .batch.page import forecast_table, status_table, write_batch_report
    from .config.batch import BatchPlan
    from .config.load import load_yaml

    plan = load_yaml(arguments.plan, BatchPlan)
    plan = plan.model_copy(update={"output": plan.output.absolute()})
    if arguments.action == "status":
        say(status_table(plan.output))
        return

    from .batch.driver import run_batch
    from .batch.sources import Files, forecast

    hosts: dict[str, Host] = {
        "file": Files(plan.output, arguments.command_line),
        **arguments.hosts(plan.output, arguments.command_line),
    }
    if arguments.dry_run:
        say(forecast_table(forecast(plan, hosts)))
        return
    items = run_batch(
        plan,
        hosts,
        arguments.action,
        should_stop=should_stop,
        log=say,
        command=arguments.command_line,
    )
    say(f"wrote {write_batch_report(plan.output)}")
    failed = [item.name for item in items if item.state == "failed"]
    if any(item.state == "stopped" for item in items):
        raise Aborted("Stopped on request. What is finished is kept: batch resume goes on from there.")
    if failed:
        raise CryohushError(
            f"{len(failed)} of {len(items)} sources failed: {', '.join(failed)}. What is finished is kept: "
            "once the reasons above are mended, batch retry-failed goes on from there."
        )


def restore_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .jobs.restore import restore

    restored = restore(arguments.input, arguments.output, root=arguments.root, raw=arguments.raw)
    say(f"{restored.n_restored} of {counted(restored.n_rows, 'row')} have their raw images again")
    if restored.n_missing:
        say(f"warning: {counted(restored.n_missing, 'raw file')} cannot be found, first {restored.missing}")
    say(f"wrote {arguments.output}")


def models_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .models import ALL_NETWORKS
    from .models.weights import list_models, load_model

    if arguments.action == "list":
        for name, entry in list_models().items():
            say(f"{name:<16} {entry.get('description', '')}")
        return
    import yaml

    model = load_model(arguments.name, ALL_NETWORKS)
    parameters = sum(tensor.numel() for tensor in model.module.parameters())
    facts = {"name": model.name, "file": str(model.path), "sha256": model.sha256, "parameters": parameters}
    say(yaml.safe_dump({**facts, **model.card}, sort_keys=False, allow_unicode=True).rstrip())


def doctor_command(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .doctor import examine

    problems = 0
    for finding in examine(arguments.url):
        say(str(finding))
        problems += finding.state == "problem"
    if problems:
        raise CryohushError(f"{counted(problems, 'problem')}, with what to do above.")
