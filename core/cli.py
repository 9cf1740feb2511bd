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
from typing import TYPE_CHECKING, Any, TypeVar

from .. import __version__
from .config.preset_list import preset_descriptions
from .console import (
    USAGE,
    complain,
    exit_status,
    in_one_line,
    is_quiet,
    note,
    prepare_streams,
    say,
    show,
    speaking,
)
from .errors import Aborted, ConfigurationError, CryohushError, missing_package
from .job_context import JobContext
from .progress import ProgressText, counted

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .batch.sources import Host
    from .jobs.folder import Earlier

Options = TypeVar("Options", bound="BaseModel")
STOP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
# What a folder stands for.
IMAGE_SUFFIXES, MICROGRAPH_SUFFIXES = (".mrc", ".mrcs", ".star", ".cs"), (".mrc", ".star")
# Without a terminal, progress is a line each time this much more is done.
PROGRESS_PERCENT = 5


def build_parser(prog: str = "cryohush", command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; options that are not given are absent from its result.

    With a `command`, only that one gets its options: reading them takes a tenth of a second.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Denoise cryo-EM particles and micrographs. `COMMAND --help` has examples.",
        epilog="Denoised images are for looking, picking and sorting by eye. Refine raw ones.",
    )
    parser.add_argument("--version", action="version", version=f"cryohush {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, add) in COMMANDS.items():
        parser_of_command = commands.add_parser(name, help=text, formatter_class=_Formatter)
        if command in (None, name):
            add(parser_of_command)
            _add_manner(parser_of_command)
            parser_of_command.epilog = _epilog(prog, name, parser_of_command.epilog)
    return parser


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs, and leaves what has lines of its own (examples, lists) as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _epilog(prog: str, command: str, more: str | None) -> str:
    lines = ["examples:", *(f"  {prog}{line.removeprefix('cryohush')}" for line in EXAMPLES[command])]
    return "\n".join([*lines, "", more] if more else lines)


def _add_manner(parser: argparse.ArgumentParser) -> None:
    """How much is said, and where; the same for all commands."""
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quiet", action="store_true", help="say warnings and errors only (default: off)")
    much.add_argument("--verbose", action="store_true", help="of an error, show the traceback (default: off)")
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="append everything that is said to this file, with the time (default: none)",
    )


class _PrintConfig(argparse.Action):
    """A switch without which files are needed, and with which they are not."""

    def __init__(self, option_strings: Sequence[str], dest: str, **given: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, **given)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            action.required = False


def _add_print_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-config",
        action=_PrintConfig,
        help="print what would be in effect as a YAML file, and do nothing else (default: off)",
    )


def _add_output(parser: argparse.ArgumentParser, help: str = "where the result goes") -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help=help)


def _add_inputs(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument(
        "input",
        nargs="+",
        metavar=metavar,
        help=f"{what}; of several files, folders or patterns each file has a folder of its own in DIR",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a YAML file with these options, keys as in docs/reference.md; the command line overrides it "
        "(default: none)",
    )


def _add_denoise(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.denoise import DenoiseOptions

    parser.description = (
        "Denoise the particles of a table of RELION or cryoSPARC, the micrographs of a table of RELION, "
        "whole stacks, or micrographs."
    )
    parser.set_defaults(work=_denoise)
    _add_inputs(
        parser,
        "INPUT",
        "particles.star, particles.cs, micrographs.star, a .mrcs stack, or a .mrc stack or micrograph",
    )
    _add_output(parser)
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
    parser.add_argument(
        "--preview",
        type=int,
        metavar="N",
        help="only draw N images, evenly spread, raw and denoised, as preview.png, and stop (default: off)",
    )
    _add_earlier(parser)
    _add_config(parser)
    _add_print_config(parser)
    add_options(parser, DenoiseOptions)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulate particle images from structures, noisy and clean, with STAR tables; or whole micrographs, "
        "if the configuration says `kind: micrographs`."
    )
    parser.set_defaults(work=_simulate)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    _add_output(parser)
    parser.add_argument(
        "--kind",
        choices=("particles", "micrographs"),
        help="what is simulated (default: as the file says, else particles)",
    )
    parser.add_argument(
        "--device", metavar="DEVICE", default="auto", help="auto, cpu or cuda:N (default: %(default)s)"
    )
    _add_earlier(parser)
    _add_overrides(parser)
    _add_print_config(parser)


def _add_extract_noise(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.extract_noise import ExtractNoiseOptions

    parser.description = (
        "Cut blocks that hold nothing but noise out of micrographs: where a network sees neither particles "
        "nor contamination, or where the denoised micrograph is alike all over."
    )
    parser.set_defaults(work=_extract_noise)
    _add_inputs(parser, "MICROGRAPHS", "micrographs.star, or a micrograph (.mrc)")
    _add_output(parser)
    parser.add_argument("--root", type=Path, metavar="DIR", help="as for denoise (default: looked for)")
    _add_earlier(parser)
    _add_config(parser)
    _add_print_config(parser)
    add_options(parser, ExtractNoiseOptions)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a network on images simulated from atomic models, or on your own."
    presets = preset_descriptions()
    width = max(map(len, presets))
    parser.epilog = "\n".join(["presets:", *(f"  {name:<{width}}  {text}" for name, text in presets.items())])
    parser.set_defaults(work=_train)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or one of the presets below")
    _add_output(parser, "where the weights go")
    _add_earlier(parser)
    _add_overrides(parser)
    _add_print_config(parser)


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
    _add_output(parser, "where the report goes")
    _add_earlier(parser)
    _add_overrides(parser)
    _add_print_config(parser)


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


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Give the rows of a table of denoised images their raw images back: of a selection, re-sorted or "
        "joined with others. All other columns keep their text."
    )
    parser.set_defaults(work=_restore)
    parser.add_argument(
        "input", type=Path, metavar="TABLE", help="particles.star, micrographs.star or particles.cs"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the new table")
    parser.add_argument("--root", type=Path, metavar="DIR", help="as for denoise (default: looked for)")
    parser.add_argument(
        "--raw",
        type=Path,
        metavar="FILE.cs",
        help="for a .cs file, the table that was denoised (default: as cryohush.json beside the denoised "
        "stacks says)",
    )


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print what makes a shell complete the words of cryohush."
    parser.set_defaults(work=_completion)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "denoise": ("denoise particles or micrographs", _add_denoise),
    "simulate": ("simulate particles or micrographs", _add_simulate),
    "extract-noise": ("cut blocks of pure noise out of micrographs", _add_extract_noise),
    "train": ("train a network", _add_train),
    "evaluate": ("measure how good denoised images are", _add_evaluate),
    "restore": ("give denoised images of a table their raw ones back", _add_restore),
    "batch": ("do one of these to many sources, on many workers", add_batch),
    "models": ("list the shipped models, or tell about one", _add_models),
    "doctor": ("see what this machine lacks", _add_doctor),
    "completion": ("let a shell complete the words of commands", _add_completion),
}

EXAMPLES: Mapping[str, Sequence[str]] = {
    "denoise": (
        "cryohush denoise Extract/job007/particles.star -o Denoised",
        "cryohush denoise Extract/job007/particles.star -o Preview --preview 12",
        "cryohush denoise J42/particles.cs -o Denoised",
        "cryohush denoise Micrographs/*.mrc -o Denoised --keep-above 8",
        "cryohush denoise particles.mrcs -o Denoised --pixel-size 1.5 --protein dark",
        "cryohush denoise particles.star -o Denoised --resume",
    ),
    "simulate": (
        "cryohush simulate --print-config --kind micrographs > simulate.yaml",
        "cryohush simulate examples/simulate.yaml -o Simulated",
        "cryohush simulate examples/simulate.yaml -o Simulated --set n_images=100 --set seed=2",
    ),
    "extract-noise": (
        "cryohush extract-noise CtfFind/job003/micrographs_ctf.star -o Noise",
        "cryohush extract-noise Micrographs/ -o Noise --window-px 64",
        "cryohush extract-noise micrograph.mrc -o Noise --method similarity --pixel-size 1.5",
    ),
    "train": (
        "cryohush train general -o run --set data.structures=PDB --set 'data.ctf_tables=[ctf.npy]'",
        "cryohush train noise2noise --print-config > train.yaml",
        "cryohush train train.yaml -o run --resume",
    ),
    "evaluate": (
        "cryohush evaluate --denoised Denoised/particles.star --reference clean.star -o Report",
        "cryohush evaluate --pairs Denoised/particles.star even.star --raw particles.star -o Report",
        "cryohush evaluate --pairs half1.mrc half2.mrc --mask mask.mrc -o Report",
        "cryohush evaluate --config evaluate.yaml -o Report",
    ),
    "restore": (
        "cryohush restore Select/job012/particles.star -o raw_particles.star",
        "cryohush restore selected.cs -o raw.cs --raw J42/particles.cs",
    ),
    "batch": (
        "cryohush batch plan.yaml --dry-run",
        "cryohush batch plan.yaml",
        "cryohush batch status plan.yaml",
    ),
    "models": ("cryohush models", "cryohush models info general"),
    "doctor": ("cryohush doctor", "cryohush doctor --url http://cryosparc:39000"),
    "completion": (
        "cryohush completion bash > ~/.local/share/bash-completion/completions/cryohush",
        "cryohush completion zsh > ~/.zfunc/_cryohush",
        "cryohush completion fish > ~/.config/fish/completions/cryohush.fish",
    ),
}
"""Command lines that `--help` shows."""


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
    manner = speaking(quiet=arguments.quiet, verbose=arguments.verbose, log_file=arguments.log_file)
    try:
        with manner, stop_flag() as should_stop:
            note(f"cryohush {__version__}: {arguments.command_line}")
            try:
                arguments.work(arguments, should_stop)
            except (Exception, KeyboardInterrupt) as error:
                return exit_status(error, should_stop.received)
    except CryohushError as error:  # of the log file
        return exit_status(error)
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
    from .config.load import load_yaml, validate

    given = given_options(vars(arguments), model)
    if arguments.config is not None:
        given = load_yaml(arguments.config, model).model_dump(exclude_unset=True) | given
    return validate(given, model, "command line")


def _print_config(config: BaseModel | type[BaseModel]) -> None:
    """Print the values of a configuration, or what one can hold, as a YAML file."""
    from .config.reference import as_yaml, blank_yaml

    show((blank_yaml(config) if isinstance(config, type) else as_yaml(config)).rstrip())


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
        raise CryohushError(f"{len(failed)} of {counted(total, 'input')} failed: {', '.join(failed)}")


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


def _simulate(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:

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
    try:
        from .jobs.simulate import simulate
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    assert isinstance(config, ParticlesConfig | MicrographsConfig)  # one of the kinds
    with _context(arguments, should_stop) as context:
        simulate(config, arguments.output, context, device=arguments.device, earlier=_earlier(arguments))


def _extract_noise(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .config.extract_noise import ExtractNoiseOptions

    options = _options(arguments, ExtractNoiseOptions)
    if arguments.print_config:
        _print_config(options)
        return

    from .jobs.extract_noise import extract_noise

    def work(source: Path, output: Path) -> None:
        with _context(arguments, should_stop, lambda: "micrographs") as context:
            extract_noise(source, output, options, context, root=arguments.root, earlier=_earlier(arguments))

    _for_each(arguments, MICROGRAPH_SUFFIXES, work)


def _train(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:

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
        _print_config(config)
        return
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
    options = {**given_options(given, EvaluateConfig), **_pairs(given)}
    if arguments.print_config and not options and arguments.config is None:
        _print_config(EvaluateConfig)
        return
    config = read_config(options, arguments.config, arguments.overrides)
    if arguments.print_config:
        _print_config(config)
        return

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


def _restore(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .jobs.restore import restore

    restored = restore(arguments.input, arguments.output, root=arguments.root, raw=arguments.raw)
    say(f"{restored.n_restored} of {counted(restored.n_rows, 'row')} have their raw images again")
    if restored.n_missing:
        say(f"warning: {counted(restored.n_missing, 'raw file')} cannot be found, first {restored.missing}")
    say(f"wrote {arguments.output}")


def _completion(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .completion import SCRIPTS

    show(SCRIPTS[arguments.shell](build_parser()).rstrip())


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
        raise CryohushError(f"{counted(problems, 'problem')}, with what to do above.")


if __name__ == "__main__":
    raise SystemExit(main())
