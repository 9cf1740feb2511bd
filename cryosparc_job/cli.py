"""`cryosparc_cryohush`: external jobs of cryoSPARC. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..core.errors import ConfigurationError, CryohushError

if TYPE_CHECKING:
    from .instance import Instance

# Flag, name of the option, placeholder, help.
OPTIONS = (
    ("--model", "model", "NAME", "a shipped model or a .safetensors file (default: general)"),
    ("--device", "device", "DEVICE", "auto, cpu, or GPUs such as cuda:0,1 (default: auto)"),
    ("--precision", "precision", "FORMAT", "auto, fp32, bf16 or fp16 (default: auto)"),
    ("--batch-size", "batch_size", "N", "images at once (default: auto)"),
    ("--blend", "blend", "A", "share of the raw image in the output, 0 to 1 (default: 0)"),
    ("--keep-above", "keep_above_angstrom", "RES", "keep the raw image beyond this resolution, Å"),
    ("--particle-diameter", "particle_diameter_angstrom", "D", "Å (default: three quarters of the box)"),
    (
        "--protein",
        "protein",
        "GREY",
        "dark or white; auto: dark in micrographs, as blob/sign says in particles",
    ),
    ("--output-dtype", "output_dtype", "TYPE", "float32 or float16 (default: float32)"),
    ("--threads", "threads", "N", "CPU threads (default: all that this process may use)"),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Options of a run that are not given are absent from its result."""
    parser = argparse.ArgumentParser(
        prog="cryosparc_cryohush",
        description="Run cryohush as an external job of cryoSPARC 4.7 or 5.",
        epilog="Sign in once with: python -m cryosparc.tools login",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_denoise(commands.add_parser("denoise", help="denoise particles or micrographs"))
    _add_restore(commands.add_parser("restore", help="give a selection of denoised particles its raw images"))
    return parser


def _add_instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        metavar="URL",
        default=os.environ.get("CRYOSPARC_BASE_URL"),
        help="the instance, as in https://host:39000 (default: CRYOSPARC_BASE_URL)",
    )
    parser.add_argument(
        "--credentials",
        type=Path,
        metavar="FILE",
        help="YAML or JSON with email, password and license, which only you can read; needed for cryoSPARC 4 "
        "(default: CRYOSPARC_EMAIL, CRYOSPARC_PASSWORD, CRYOSPARC_LICENSE_ID)",
    )
    parser.add_argument("--project", metavar="P3", required=True, help="the project")


def _add_denoise(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Denoise the particles or micrographs of a job's output. The result is an external job's."
    )
    parser.set_defaults(work=_denoise)
    _add_instance(parser)
    parser.add_argument("--workspace", metavar="W1", help="where the job is made")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--particles", metavar="J42:particles", help="job and output with particles")
    images.add_argument("--micrographs", metavar="J10:exposures", help="job and output with micrographs")
    parser.add_argument("--resume", metavar="J57", help="go on in a job that failed or was killed")
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="work in this folder, and let the files travel through the server, when the project's directory "
        "is not mounted on this machine",
    )
    for flag, name, metavar, text in OPTIONS:
        # SUPPRESS tells what the user said from what he left to the options' own defaults
        parser.add_argument(flag, dest=name, metavar=metavar, default=argparse.SUPPRESS, help=text)
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        default=argparse.SUPPRESS,
        help="pass images with NaN or Inf, and constant ones, through unchanged (default: stop at the first)",
    )


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.description = "Give particles that were selected by their denoised images the raw ones back."
    parser.set_defaults(work=_restore)
    _add_instance(parser)
    parser.add_argument("--workspace", metavar="W1", required=True, help="where the job is made")
    parser.add_argument("--particles", metavar="J80:particles_selected", required=True, help="the selection")
    parser.add_argument(
        "--raw",
        metavar="J42:particles",
        help="the raw images (default: the input of the job that denoised them)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0 if the job is completed; 1 after an error, told in one line on stderr and in the job, if there is
        one; 2 for wrong usage, or when the job was stopped by a signal or ended in cryoSPARC.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    arguments.command_line = shlex.join(["cryosparc_cryohush", *words])
    secrets: list[str] = []
    try:
        code: int = arguments.work(arguments, secrets)
    except CryohushError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 2
    except Exception:
        text = traceback.format_exc()
        for secret in secrets:
            text = text.replace(secret, "[…]")
        print(text, file=sys.stderr)
        return 1
    return code


def _sign_in(arguments: argparse.Namespace, secrets: list[str]) -> Instance:
    from .instance import Instance
    from .sign_in import connect, normalise_url, read_credentials

    if not arguments.url:
        raise ConfigurationError("--url is missing, as in --url https://host:39000.")
    url = normalise_url(arguments.url)
    credentials = read_credentials(arguments.credentials, os.environ)
    secrets += credentials.secrets
    return Instance(*connect(url, credentials), credentials.secrets)


def _denoise(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from ..core.config.denoise import DenoiseOptions
    from ..core.config.load import validate

    given = {
        name: getattr(arguments, name) for name in DenoiseOptions.model_fields if hasattr(arguments, name)
    }
    options = validate(given, DenoiseOptions, "command line")
    from .denoise import Request, denoise
    from .kinds import MICROGRAPHS, PARTICLES

    request = Request(
        project=arguments.project,
        workspace=arguments.workspace,
        source=arguments.particles or arguments.micrographs,
        kind=PARTICLES if arguments.particles else MICROGRAPHS if arguments.micrographs else None,
        resume=arguments.resume,
        options=options,
        scratch=arguments.scratch,
        command=arguments.command_line,
    )
    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        return denoise(instance, request)


def _restore(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from .restore import Request, restore

    request = Request(
        project=arguments.project,
        workspace=arguments.workspace,
        particles=arguments.particles,
        raw=arguments.raw,
        command=arguments.command_line,
    )
    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        return restore(instance, request)


if __name__ == "__main__":
    raise SystemExit(main())
