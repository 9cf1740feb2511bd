"""`cryohush`: the command line. Nothing heavy is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from .. import __version__
from .config.preset_list import preset_descriptions
from .console import USAGE, exit_status, prepare_streams, say
from .errors import Aborted, ConfigurationError, CryohushError, missing_package
from .job_context import JobContext

if TYPE_CHECKING:
    from .batch.sources import Host
    from .jobs.folder import Earlier

STOP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
# Without a terminal, progress is a line each time this much more is done.
PROGRESS_PERCENT = 5


def build_parser(prog: str = "cryohush", command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; options that are not given are absent from its result.

    With a `command`, only that one gets its options: reading them takes a tenth of a second.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Denoise cryo-EM particles and micrographs.",
        epilog="Denoised images are for looking, picking and sorting by eye. Refine raw ones.",
    )
    parser.add_argument("--version", action="version", version=f"cryohush {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, add) in COMMANDS.items():
        parser_of_command = commands.add_parser(name, help=text)
        if command in (None, name):
            add(parser_of_command)
    return parser


def _add_denoise(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.denoise import DenoiseOptions

    parser.description = (
        "Denoise the particles of a table of RELION or cryoSPARC, the micrographs of a table of RELION, "
        "a whole stack, or one micrograph."
    )
    parser.set_defaults(work=_denoise)
    parser.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="particles.star, particles.cs, micrographs.star, a .mrcs stack, or a .mrc stack or micrograph",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="where the result goes")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that the table's image names are relative to (default: looked for from the working "
        "directory and the table's folder upwards)",
    )
    parser.add_argument(
        "--passthrough",
        type=Path,
        metavar="FILE.cs",
        action="append",
        default=[],
        help="completes the rows of particles.cs with the fields of another file; may be repeated (default: "
        "those named *passthrough*.cs beside it that hold all its particles)",
    )
    _add_earlier(parser)

    add_options(parser, DenoiseOptions)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulate particle images from structures, noisy and clean, with STAR tables; or whole micrographs, "
        "if the configuration says `kind: micrographs`."
    )
    parser.set_defaults(work=_simulate)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="where the result goes")
    parser.add_argument(
        "--device", metavar="DEVICE", default="auto", help="auto, cpu or cuda:N (default: %(default)s)"
    )
    _add_earlier(parser)
    _add_overrides(parser)


def _add_extract_noise(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.extract_noise import ExtractNoiseOptions

    parser.description = (
        "Cut blocks that hold nothing but noise out of micrographs: where a network sees neither particles "
        "nor contamination, or where the denoised micrograph is alike all over."
    )
    parser.set_defaults(work=_extract_noise)
    parser.add_argument("input", type=Path, metavar="MICROGRAPHS", help="micrographs.star, or one .mrc")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="where the result goes")
    parser.add_argument("--root", type=Path, metavar="DIR", help="as for denoise (default: looked for)")
    _add_earlier(parser)
    add_options(parser, ExtractNoiseOptions)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a network on images simulated from atomic models, or on your own."
    presets = preset_descriptions()
    width = max(map(len, presets))
    parser.epilog = "\n".join(["presets:", *(f"  {name:<{width}}  {text}" for name, text in presets.items())])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(work=_train)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or one of the presets below")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="where the weights go")
    _add_earlier(parser)
    _add_overrides(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.evaluate import EvaluateConfig

    parser.description = (
        "Measure denoised particles, micrographs or half maps against clean images or against independent "
        "noisy ones, and write the figures as JSON, PNG, HTML and PDF. Rows of tables are paired "
        "by image, uid, or micrograph and coordinates."
    )
    parser.set_defaults(work=_evaluate)

    parser.add_argument(
        "--pairs",
        nargs=2,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="denoised images and independent noisy ones of the same particles, or two half maps "
        "(default: none)",
    )
    parser.add_argument(
        "--mask", metavar="FILE", default=argparse.SUPPRESS, help="mask for half maps (default: none)"
    )
    add_options(parser, EvaluateConfig)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a YAML file with these options and more (default: none)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="where the report goes")
    _add_earlier(parser)
    _add_overrides(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add what `batch` takes; the same for each host's own command."""
    parser.description = (
        "Run a plan: many sources on the GPUs of this machine or of a cluster (docs/batch.md)."
    )
    parser.set_defaults(work=run_plan)
    parser.add_argument(
        "action",
        nargs="?",
        choices=("run", "status", "resume", "retry-failed"),
        default="run",
        help="resume goes on after an interruption, retry-failed tries what failed again, status tells how "
        "things stand, also while the batch runs (default: %(default)s)",
    )
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a YAML file")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, and say what would run (default: off)"
    )


def _add_earlier(parser: argparse.ArgumentParser) -> None:
    """What to do with an earlier run in the output directory; the same for all commands."""
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="go on with an interrupted run (default: off)")
    earlier.add_argument("--overwrite", action="store_true", help="replace an earlier run (default: off)")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace an entry of the configuration, e.g. seed=2; may be repeated (default: none)",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the shipped models, or tell all that is known of one."
    parser.set_defaults(work=_models)
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "info"),
        default="list",
        help="what to show (default: %(default)s)",
    )
    parser.add_argument(
        "name",
        nargs="?",
        default="general",
        metavar="NAME",
        help="model or file for info (default: %(default)s)",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = "See what this machine has of what cryohush needs, and what to mend."
    parser.set_defaults(work=_doctor)
    parser.add_argument(
        "--url", help="a cryoSPARC instance to reach, as in http://host:39000 (default: none)"
    )


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "denoise": ("denoise particles or micrographs", _add_denoise),
    "simulate": ("simulate particles or micrographs", _add_simulate),
    "extract-noise": ("cut blocks of pure noise out of micrographs", _add_extract_noise),
    "train": ("train a network", _add_train),
    "evaluate": ("measure how good denoised images are", _add_evaluate),
    "batch": ("do one of these to many sources, on many workers", add_batch),
    "models": ("list the shipped models, or tell about one", _add_models),
    "doctor": ("see what this machine lacks", _add_doctor),
}


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "cryohush",
    hosts: Callable[[Path, str], Mapping[str, Host]] = lambda folder, command: {},
) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Its words; None is those that the process was started with.
    prog
        Its name.
    hosts
        Returns the hosts of the sources of a batch, besides files, for its folder and command line.

    Returns
    -------
    int
        0 on success; 1 after an error, told in one line on stderr; 2 for wrong usage; 130 when stopped by
        Ctrl-C and 143 by SIGTERM, which leave a state that `--resume` goes on from.
    """
    prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        command = next((word for word in words if not word.startswith("-")), "")
        arguments = build_parser(prog, command).parse_args(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else USAGE
    arguments.command_line, arguments.hosts = shlex.join([prog, *words]), hosts
    with stop_flag() as should_stop:
        try:
            arguments.work(arguments, should_stop)
        except (Exception, KeyboardInterrupt) as error:
            return exit_status(error, should_stop.received)
    return 0


class StopFlag:
    """Whether a stop signal has come.

    Attributes
    ----------
    received
        Its number.
    """

    received: int | None = None

    def __call__(self) -> bool:
        return self.received is not None


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Yield a flag that tells whether a stop signal has come; a second one has its usual effect."""
    flag = StopFlag()

    def note(number: int, frame: FrameType | None) -> None:
        flag.received = number
        signal.signal(number, earlier[number])

    earlier = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, note)
    try:
        yield flag
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _denoise(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.base import given_options
    from .config.denoise import DenoiseOptions
    from .config.load import validate

    options = validate(given_options(vars(arguments), DenoiseOptions), DenoiseOptions, "command line")

    from .inference.plan import holds_micrographs
    from .jobs.denoise import denoise

    def noun() -> str:
        return "micrographs" if holds_micrographs(arguments.input) else "images"

    with _context(arguments, should_stop, noun) as context:
        denoise(
            arguments.input,
            arguments.output,
            options,
            context,
            root=arguments.root,
            passthrough=arguments.passthrough,
            earlier=_earlier(arguments),
        )


@contextlib.contextmanager
def _context(
    arguments: argparse.Namespace,
    should_stop: Callable[[], bool],
    noun: Callable[[], str] = lambda: "images",
) -> Iterator[JobContext]:
    """Yield what a job asks and tells: lines on stdout, progress on stderr or stdout."""
    with _progress(noun) as progress:
        yield JobContext(progress, should_stop, say, arguments.command_line)


def _earlier(arguments: argparse.Namespace) -> Earlier:
    """Return what is to be done with an earlier run in the output directory."""
    if arguments.resume:
        return "resume"
    return "replace" if arguments.overwrite else "refuse"


@contextlib.contextmanager
def _progress(noun: Callable[[], str] = lambda: "images") -> Iterator[Callable[[int, int], None]]:
    """Yield a progress callback: a bar on a terminal, otherwise a line for every few per cent.

    `noun` tells what is counted; it is asked once counting begins, when the input was found sound.
    """
    if not sys.stderr.isatty():
        last, counted = -PROGRESS_PERCENT, ""

        def line(done: int, total: int) -> None:
            nonlocal last, counted
            percent = 100 * done // max(total, 1)
            if percent >= last + PROGRESS_PERCENT or (done == total and percent > last):
                last, counted = percent, counted or noun()
                say(f"{done} of {total} {counted} ({percent} %)")

        yield line
        return
    from tqdm import tqdm

    with tqdm(unit=" images", smoothing=0.1) as bar:

        def draw(done: int, total: int) -> None:
            if bar.total is None:
                bar.unit = f" {noun()}"
                bar.reset(total)
                bar.initial = done
            bar.update(done - bar.n)

        yield draw


def _simulate(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from pydantic import BaseModel

    from .config.load import load_kind
    from .config.micrographs import MicrographsConfig
    from .config.simulate import ParticlesConfig

    kinds: dict[str, type[BaseModel]] = {"particles": ParticlesConfig, "micrographs": MicrographsConfig}
    config = load_kind(arguments.config, kinds, arguments.overrides)
    try:
        from .jobs.simulate import simulate
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    assert isinstance(config, ParticlesConfig | MicrographsConfig)  # one of the kinds
    with _context(arguments, should_stop) as context:
        simulate(config, arguments.output, context, device=arguments.device, earlier=_earlier(arguments))


def _extract_noise(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.base import given_options
    from .config.extract_noise import ExtractNoiseOptions
    from .config.load import validate

    given = given_options(vars(arguments), ExtractNoiseOptions)
    options = validate(given, ExtractNoiseOptions, "command line")

    from .jobs.extract_noise import extract_noise

    with _context(arguments, should_stop) as context:
        extract_noise(
            arguments.input,
            arguments.output,
            options,
            context,
            root=arguments.root,
            earlier=_earlier(arguments),
        )


def _train(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from pydantic import BaseModel

    from .config.load import find_preset, load_kind
    from .config.nt2c import Nt2cConfig
    from .config.segmentation import SegmentationConfig
    from .config.training import TrainingConfig

    kinds: dict[str, type[BaseModel]] = {
        "denoiser": TrainingConfig,
        "segmentation": SegmentationConfig,
        "nt2c": Nt2cConfig,
    }
    config = load_kind(find_preset(arguments.config), kinds, arguments.overrides)
    try:
        from .jobs.train import train
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    assert isinstance(config, TrainingConfig | SegmentationConfig | Nt2cConfig)  # one of the kinds
    with _progress(lambda: "steps") as progress:
        context = JobContext(progress, should_stop, say, command=arguments.command_line)
        train(config, arguments.output, context, earlier=_earlier(arguments))


def _evaluate(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.base import given_options
    from .config.evaluate import EvaluateConfig, read_config

    given = vars(arguments)
    options = given_options(given, EvaluateConfig)
    config = read_config({**options, **_pairs(given)}, arguments.config, arguments.overrides)

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
    from .batch.evaluate_kind import KINDS, report_result
    from .batch.sources import Files, forecast

    hosts: dict[str, Host] = {
        "file": Files(plan.output, lambda summary: report_result(summary, arguments.command_line)),
        **arguments.hosts(plan.output, arguments.command_line),
    }
    if arguments.dry_run:
        say(forecast_table(forecast(plan, hosts, KINDS)))
        return
    items = run_batch(
        plan,
        hosts,
        KINDS,
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
        raise CryohushError(f"{len(failed)} of {len(items)} sources failed: {', '.join(failed)}")


def _models(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
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


def _doctor(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .doctor import examine

    problems = 0
    for finding in examine(arguments.url):
        say(str(finding))
        problems += finding.state == "problem"
    if problems:
        raise CryohushError(
            f"{problems} {'problem' if problems == 1 else 'problems'}, with what to do above."
        )


if __name__ == "__main__":
    raise SystemExit(main())
