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
from typing import Any, NoReturn

from .. import __version__
from .job import find_job_directory, run_as_external_job

# Inputs of the External job that denoising has no use for, and what RELION appends when it meets `relion_`.
SWALLOWED = (
    "--in_movies",
    "--in_coords",
    "--in_3dref",
    "--in_3Dref",
    "--in_mask",
    "--pipeline_control",
)

# Flag, name of the option (in a configuration file, and accepted as a flag too), placeholder, help.
OPTIONS = (
    ("--j", "threads", "N", "CPU threads; RELION's 'Number of threads'"),
    ("--gpu", "gpu", "IDS", "GPUs, as 0 or 0,1; empty: all that there are, else the CPU"),
    ("--device", "device", "DEVICE", "auto, cpu or cuda:0,1, instead of --gpu (default: auto)"),
    ("--model", "model", "NAME", "a shipped model or a .safetensors file (default: general)"),
    ("--precision", "precision", "FORMAT", "auto, fp32, bf16 or fp16 (default: auto)"),
    ("--batch_size", "batch_size", "N", "images at once (default: auto)"),
    ("--blend", "blend", "A", "share of the raw image in the output, 0 to 1 (default: 0)"),
    ("--keep_above", "keep_above_angstrom", "RES", "keep the raw image beyond this resolution, Å"),
    ("--particle_diameter", "particle_diameter_angstrom", "D", "Å (default: three quarters of the box)"),
    ("--protein", "protein", "SHADE", "dark or white (default: dark in micrographs, white in particles)"),
    ("--output_dtype", "output_dtype", "TYPE", "float32 or float16 (default: float32)"),
    ("--skip_bad", "skip_bad", "YES", "pass bad images through unchanged instead of stopping (default: No)"),
    ("--config", "config", "YAML", "file with options, as lines `model: general`"),
)


class _Parser(argparse.ArgumentParser):
    """A parser without abbreviations, which says what is wrong in one line."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments
        )

    def error(self, message: str) -> NoReturn:
        print(f"ERROR: {self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `relion_cryohush`. Options that are not given are absent from its result."""
    parser = _Parser(prog="relion_cryohush", description="Run by the External job of RELION 3.1, 4 and 5.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    denoise = commands.add_parser(
        "denoise",
        help="denoise particles or micrographs",
        description=(
            "Denoise particles or micrographs as an External job of RELION.\n\n"
            "Input tab, External executable:  relion_cryohush denoise\n"
            "Input tab, Input particles:      a particles STAR file, or\n"
            "Input tab, Input micrographs:    a micrographs STAR file\n"
            "Params tab:                      any option below, its name without the dashes"
        ),
    )
    denoise.add_argument("--o", metavar="DIR", required=True, help="job directory (RELION gives it)")
    denoise.add_argument("--in_parts", metavar="STAR", nargs="?", help="particles (RELION gives them)")
    denoise.add_argument("--in_mics", metavar="STAR", nargs="?", help="micrographs (RELION gives them)")
    for flag in SWALLOWED:
        denoise.add_argument(flag, nargs="?", help=argparse.SUPPRESS)
    for flag, name, metavar, text in OPTIONS:
        flags = dict.fromkeys((flag, f"--{name}"))
        denoise.add_argument(
            *flags, dest=name, nargs="?", metavar=metavar, default=argparse.SUPPRESS, help=text
        )
    return parser


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what is on the command line: only the options that are, None for a bare flag."""
    parser = build_parser()
    if not arguments or (arguments[0].startswith("--") and arguments[0] not in ("--help", "--version")):
        parser.error("no command. The field 'External executable' has to be: relion_cryohush denoise")
    parsed, unknown = parser.parse_known_args([_underscored(argument) for argument in arguments])
    if unknown:
        parser.error(_explain(unknown[0]))
    return vars(parsed)


def _underscored(argument: str) -> str:
    """`----keep-above=10` becomes `--keep_above=10`; what is no flag stays as it is."""
    if not argument.startswith("--") or not argument.lstrip("-"):
        return argument
    name, equals, value = argument.lstrip("-").partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _explain(unknown: str) -> str:
    """Say what an argument that nobody wants may have been meant to be."""
    if not unknown.startswith("-"):
        return f"unexpected {unknown!r}. RELION splits at blanks: a value must not hold any."
    label, known = unknown.lstrip("-").partition("=")[0], [flag.lstrip("-") for flag, *_ in OPTIONS]
    near = difflib.get_close_matches(label, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    return f"unknown parameter {label!r}: {hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of RELION's External job; 0 on success, 1 on failure, 2 for wrong usage or an abort."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    directory = find_job_directory(arguments)
    if directory is None:
        # Not from RELION: --help, or a command that lacks its job directory.
        parse(arguments)
        return 2

    def work(should_stop: Callable[[], bool]) -> None:
        given = parse(arguments)
        from .denoise import denoise

        denoise(directory, given, shlex.join(["relion_cryohush", *arguments]), should_stop)

    return run_as_external_job(directory, work)
