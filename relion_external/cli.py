"""`relion_cryohush`: what RELION's External job runs.

RELION builds the command line itself, so it is read with patience: a parameter whose value was left empty
comes as a bare flag, a label typed with its dashes comes with four of them, and inputs that a command has no
use for come all the same. Nothing heavy is imported before `run_as_external_job` has taken over.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..core.console import prepare_streams
from .markers import find_job_directory, run_as_external_job

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..core.batch.sources import Host

# Inputs of the External job that no command has a use for, and what RELION appends when it meets `relion_`.
SWALLOWED = (
    "--in_movies",
    "--in_3dref",
    "--in_3Dref",
    "--in_mask",
    "--pipeline_control",
)


def _underscored(argument: str) -> str:
    """`----keep-above=10` becomes `--keep_above=10`; what is no flag stays as it is."""
    if not argument.startswith("--") or not argument.lstrip("-"):
        return argument
    name, equals, value = argument.lstrip("-").partition("=")
    return "--" + name.replace("-", "_") + equals + value


# Flag, name of the option (in a configuration file, and accepted as a flag too), placeholder, help.
Parameter = tuple[str, str, str, str]
THREADS = ("--j", "threads", "N", "CPU threads; RELION's 'Number of threads'")
GPU = ("--gpu", "gpu", "IDS", "GPUs, as 0 or 0,1; empty: all that there are, else the CPU")
TRAIN_OPTIONS = (
    THREADS,
    ("--gpu", "gpu", "ID", "GPU; empty: one if there is one, else the CPU"),
    ("--device", "device", "DEVICE", "auto, cpu or cuda:0, instead of --gpu (default: auto)"),
    (
        "--model",
        "model",
        "NAME",
        "what to begin with: a shipped model, a training job, weights, none (default: general)",
    ),
    ("--twin", "twin", "STAR", "the same particles with independent noise, instead of a map"),
    ("--box", "box_px", "N", "boxes from even and odd frames, px (default: as the particles, or 128)"),
    ("--half_set", "half_set", "1|2", "learn from this half set only (default: all particles)"),
    ("--half_sets", "half_sets", "YES", "train a model for each half set (default: No)"),
    ("--low_pass", "low_pass_angstrom", "RES", "resolution of the map, Å: finer is not learnt"),
    ("--steps", "steps", "N", "(default: 2000, or as the config says)"),
    ("--batch_size", "batch_size", "N", "particles per step (default: 16, or as the config says)"),
    ("--learning_rate", "learning_rate", "R", "(default: 0.0003, or as the config says)"),
    ("--validation_share", "validation_share", "S", "share of micrographs held out (default: 0.1)"),
    ("--config", "config", "YAML", "preset or file of `cryohush train`; the inputs replace its images"),
)

COMMANDS = ("denoise", "evaluate", "extract-noise", "train")


def parameters_of(command: str) -> list[Parameter]:
    """Return the parameters that a command's form may hold; those of `train` are RELION's own."""
    from ..core.config.base import options_of
    from ..core.config.denoise import DenoiseOptions
    from ..core.config.evaluate import EvaluateConfig
    from ..core.config.extract_noise import ExtractNoiseOptions

    if command == "train":
        return list(TRAIN_OPTIONS)
    models: dict[str, type[BaseModel]] = {
        "denoise": DenoiseOptions,
        "evaluate": EvaluateConfig,
        "extract-noise": ExtractNoiseOptions,
    }
    # RELION has names of its own for these two; the denoised images are the job's input
    found = [option for option in options_of(models[command]) if option.name not in ("threads", "denoised")]
    return [
        THREADS,
        GPU,
        *(
            (
                option.flags("relion")[0],
                option.name,
                "YES" if option.is_switch else f"{option.metavar}S" if option.is_list else option.metavar,
                f"{option.help}{', instead of --gpu' if option.name == 'device' else ''}",
            )
            for option in found
        ),
        ("--config", "config", "YAML", "file with these options and more, as lines `key: value`"),
    ]


class _Parser(argparse.ArgumentParser):
    """A parser without abbreviations, which says what is wrong in one line."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments
        )

    def error(self, message: str) -> NoReturn:
        print(f"ERROR: {self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


# For --help: in a line, what a command does, and what to give in the fields of the Input tab.
_FORMS = {
    "denoise": (
        "denoise particles or micrographs",
        "Denoise particles or micrographs as an External job of RELION.",
        (("particles", "a particles STAR file, or"), ("micrographs", "a micrographs STAR file")),
    ),
    "evaluate": (
        "measure how good denoised images are",
        "Measure denoised particles or micrographs as an External job of RELION.",
        (("particles", "the denoised particles, or"), ("micrographs", "the denoised micrographs")),
    ),
    "extract-noise": (
        "cut blocks of pure noise out of micrographs",
        "Cut blocks of pure noise out of micrographs as an External job of RELION.",
        (("micrographs", "a micrographs STAR file"),),
    ),
    "train": (
        "train a model on particles and their map",
        "Train a model on your own particles as an External job of RELION.",
        (
            ("particles", "particles with poses, of a 3D refinement"),
            ("3D reference", "the map of that refinement"),
            ("3D mask", "optional; or, on the sums of even and of odd frames,"),
            ("micrographs", "of a motion correction with --even_odd_split"),
            ("particles", "or Input coordinates: what to cut out; optional"),
        ),
    ),
    "raw-picks": (
        "bring picks on denoised micrographs to the raw ones (RELION 4 and 5)",
        "Write a list of coordinates with the raw micrographs' names, for RELION 4 and 5.",
        (("coordinates", "the autopick.star or the like of a picking job"),),
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `relion_cryohush`. Options that are not given are absent from its result."""
    parser = _Parser(prog="relion_cryohush", description="Run by the External job of RELION 3.1, 4 and 5.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, sentence, fields) in _FORMS.items():
        options = [THREADS] if name == "raw-picks" else parameters_of(name)
        params = "nothing" if name == "raw-picks" else "any option below, its name without the dashes"
        lines = [
            ("Input tab, External executable:", f"relion_cryohush {name}"),
            *((f"Input tab, Input {field}:", what) for field, what in fields),
            ("Params tab:", params),
        ]
        form = "".join(f"\n{where:<33}{what}" for where, what in lines)
        command = commands.add_parser(name, help=summary, description=f"{sentence}\n{form}")
        _add_arguments(command, options)
    commands.add_parser("batch", help="run a plan of many sources: relion_cryohush batch --help")
    follow = commands.add_parser("follow", help="follow one source of a batch; the batch makes this job")
    _add_arguments(follow, [THREADS])
    return parser


def _add_arguments(command: argparse.ArgumentParser, options: Sequence[Parameter]) -> None:
    """Add what RELION gives every External job, and the options of a command."""
    command.add_argument("--o", metavar="DIR", required=True, help="job directory (RELION gives it)")
    command.add_argument("--in_parts", metavar="STAR", nargs="?", help="particles (RELION gives them)")
    command.add_argument("--in_mics", metavar="STAR", nargs="?", help="micrographs (RELION gives them)")
    command.add_argument("--in_coords", metavar="STAR", nargs="?", help="coordinates (RELION gives them)")
    for flag in SWALLOWED:
        command.add_argument(flag, nargs="?", help=argparse.SUPPRESS)
    for flag, name, metavar, text in options:
        flags = dict.fromkeys((flag, f"--{name}"))
        command.add_argument(
            *flags, dest=name, nargs="?", metavar=metavar, default=argparse.SUPPRESS, help=text
        )


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what is on the command line: only the options that are, None for a bare flag."""
    parser = build_parser()
    if not arguments or (arguments[0].startswith("--") and arguments[0] not in ("--help", "--version")):
        commands = " or ".join(f"relion_cryohush {name}" for name in (*COMMANDS, "raw-picks"))
        parser.error(f"no command. The field 'External executable' has to be: {commands}")
    parsed, unknown = parser.parse_known_args([_underscored(argument) for argument in arguments])
    if unknown:
        parser.error(
            _explain(unknown[0], parameters_of(parsed.command) if parsed.command in COMMANDS else ())
        )
    return vars(parsed)


def _explain(unknown: str, options: Sequence[Parameter]) -> str:
    """Say what an argument that nobody wants may have been meant to be."""
    if not unknown.startswith("-"):
        return f"unexpected {unknown!r}. RELION splits at blanks: a value must not hold any."
    label, known = unknown.lstrip("-").partition("=")[0], [flag.lstrip("-") for flag, *_ in options]
    near = difflib.get_close_matches(label, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    return f"unknown parameter {label!r}: {hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of RELION's External job; 0 on success, 1 on failure, 2 for wrong usage or an abort."""
    prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["batch"]:
        return _batch(arguments)
    directory = find_job_directory(arguments)
    if directory is None:
        # Not from RELION: --help, or a command that lacks its job directory.
        parse(arguments)
        return 2

    def work(should_stop: Callable[[], bool]) -> None:
        given = parse(arguments)
        from .commands import run
        from .request import Request

        request = Request(directory, given, shlex.join(["relion_cryohush", *arguments]), should_stop)
        run(request)

    return run_as_external_job(directory, work)


def _batch(arguments: Sequence[str]) -> int:
    from ..core.cli import main as core_main

    def hosts(folder: Path, command: str) -> dict[str, Host]:
        from .host import RelionProjects

        return {"relion": RelionProjects(folder, command)}

    return core_main(arguments, prog="relion_cryohush", hosts=hosts)
