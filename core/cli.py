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
from .advice import USE
from .commands import (
    denoise_command,
    doctor_command,
    evaluate_command,
    extract_noise_command,
    models_command,
    restore_command,
    run_plan,
    simulate_command,
    train_command,
)
from .config.preset_list import preset_descriptions
from .console import (
    USAGE,
    CommandParser,
    exit_status,
    note,
    prepare_streams,
    show,
    speaking,
)
from .errors import CryohushError

if TYPE_CHECKING:
    from .batch.sources import Host

STOP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)


def build_parser(prog: str = "cryohush", command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; options that are not given are absent from its result.

    With a `command`, only that one gets its options: reading them takes a tenth of a second.
    """
    parser = CommandParser(
        prog=prog,
        description="Denoise cryo-EM particles and micrographs. `COMMAND --help` has examples.",
        epilog=USE,
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
    much.add_argument("--quiet", action="store_true", help="print warnings and errors only (default: off)")
    much.add_argument("--verbose", action="store_true", help="show the traceback of an error (default: off)")
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="append all messages to this file, with the time (default: none)",
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


def _named(text: str) -> Path:
    """An empty name, as of a variable that is not set, would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty.")
    return Path(text)


def _add_output(parser: argparse.ArgumentParser, help: str = "where the result goes") -> None:
    parser.add_argument("-o", "--output", type=_named, metavar="DIR", required=True, help=help)


def _add_inputs(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument(
        "input",
        nargs="+",
        metavar=metavar,
        help=f"{what}; with several files, folders or patterns, each file gets a folder of its own in DIR",
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
    parser.set_defaults(work=denoise_command)
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
        help="only draw N images, evenly spread, raw and denoised, as preview.png, and stop; below 100 "
        "particles without the context of the stack (default: off)",
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
    parser.set_defaults(work=simulate_command)
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
    add_overrides(parser)
    _add_print_config(parser)


def _add_extract_noise(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.extract_noise import ExtractNoiseOptions

    parser.description = (
        "Cut blocks that hold nothing but noise out of micrographs: where a network sees neither particles "
        "nor contamination, or where the denoised micrograph is alike all over."
    )
    parser.set_defaults(work=extract_noise_command)
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
    parser.set_defaults(work=train_command)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or one of the presets below")
    _add_output(parser, "where the weights go")
    _add_earlier(parser)
    add_overrides(parser)
    _add_print_config(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from .config.base import add_options
    from .config.evaluate import EvaluateConfig

    parser.description = (
        "Measure denoised particles, micrographs or half maps against clean images or against independent "
        "noisy ones, and write the figures as JSON, PNG, HTML and PDF. Rows of tables are paired "
        "by image, uid, or micrograph and coordinates."
    )
    parser.set_defaults(work=evaluate_command)

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
    add_overrides(parser)
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


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Offer `--set`, by which a command line replaces entries of its configuration."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace an entry of the configuration, e.g. seed=2; may be repeated (default: none)",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the shipped models, or show all that is known of one."
    parser.set_defaults(work=models_command)
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
    parser.description = "Check whether this machine has what cryohush needs, and say what to fix."
    parser.set_defaults(work=doctor_command)
    parser.add_argument(
        "--url", help="a cryoSPARC instance to reach, as in http://host:39000 (default: none)"
    )


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Give the rows of a table of denoised images their raw images back; it may be a selection, "
        "re-sorted, or joined from several. All other columns keep their text."
    )
    parser.set_defaults(work=restore_command)
    parser.add_argument(
        "input", type=Path, metavar="TABLE", help="particles.star, micrographs.star or particles.cs"
    )
    parser.add_argument("-o", "--output", type=_named, metavar="FILE", required=True, help="the new table")
    parser.add_argument("--root", type=Path, metavar="DIR", help="as for denoise (default: looked for)")
    parser.add_argument(
        "--raw",
        type=Path,
        metavar="FILE.cs",
        help="for a .cs file, the table that was denoised (default: as cryohush.json beside the denoised "
        "stacks says)",
    )


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print the script that lets a shell complete commands and options of cryohush."
    parser.set_defaults(work=_completion)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "denoise": ("denoise particles or micrographs", _add_denoise),
    "simulate": ("simulate particles or micrographs", _add_simulate),
    "extract-noise": ("cut blocks of pure noise out of micrographs", _add_extract_noise),
    "train": ("train a network", _add_train),
    "evaluate": ("measure how good denoised images are", _add_evaluate),
    "restore": ("bring a table of denoised images back to the raw ones", _add_restore),
    "batch": ("run denoise, extract-noise or evaluate on many sources", add_batch),
    "models": ("list the shipped models, or describe one", _add_models),
    "doctor": ("check what this machine lacks", _add_doctor),
    "completion": ("let a shell complete commands and options", _add_completion),
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
        "cryohush extract-noise Micrographs/ -o Noise --window-px 48",
        "cryohush extract-noise micrograph.mrc -o Noise --method similarity --similarity-threshold 0.5",
    ),
    "train": (
        "cryohush train general -o run --set data.structures=PDB --set 'data.ctf_tables=[ctf.npy]'",
        "cryohush train noise2noise --print-config > train.yaml",
        "cryohush train train.yaml -o run --resume",
    ),
    "evaluate": (
        "cryohush evaluate --denoised Denoised/particles.star --reference ctf_only.star -o Report",
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


def _completion(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> None:
    from .completion import SCRIPTS

    show(SCRIPTS[arguments.shell](build_parser()).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
