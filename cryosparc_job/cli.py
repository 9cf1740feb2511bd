"""`cryosparc_cryohush`: external jobs of cryoSPARC. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..core.cli import add_batch, add_overrides
from ..core.config.base import Option, add_options
from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.config.training import FRAMES_BOX_PX
from ..core.console import CommandParser, prepare_streams
from ..core.errors import CryohushError
from .commands import (
    make_denoise,
    make_evaluate,
    make_extract_noise,
    make_restore,
    make_train,
    run_batch,
    run_in_job,
    run_list,
    run_login,
    run_watch,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Options of a run that are not given are absent from its result."""
    parser = CommandParser(
        prog="cryosparc_cryohush",
        description="Run cryohush as an external job of cryoSPARC 4.7 or 5.",
        epilog="Sign in once with: cryosparc_cryohush login --url https://host:39000",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_login(commands.add_parser("login", help="sign in to an instance of cryoSPARC 5"))
    _add_list(commands.add_parser("list", help="list projects, or a project's outputs that can be worked on"))
    _add_denoise(commands.add_parser("denoise", help="denoise particles or micrographs"))
    _add_extract_noise(
        commands.add_parser("extract-noise", help="cut blocks of pure noise out of micrographs")
    )
    _add_train(commands.add_parser("train", help="train a model on particles with poses and their map"))
    _add_evaluate(commands.add_parser("evaluate", help="measure how good denoised particles are"))
    _add_restore(commands.add_parser("restore", help="give a selection of denoised particles its raw images"))
    _add_watch(commands.add_parser("watch", help="run what users ask for in the browser"))
    batch = commands.add_parser("batch", help="run a plan of many sources")
    add_batch(batch)
    _add_signing_in(batch)
    batch.set_defaults(work=run_batch)
    return parser


def _add_signing_in(parser: argparse.ArgumentParser) -> None:
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


def _add_instance(parser: argparse.ArgumentParser) -> None:
    _add_signing_in(parser)
    parser.add_argument("--project", metavar="P3", required=True, help="the project")


def _add_job(parser: argparse.ArgumentParser) -> None:
    """Add what says where a new job is made, which one to go on with, and where to work."""
    _add_instance(parser)
    parser.add_argument("--workspace", metavar="W1", help="where the job is made")
    parser.add_argument("--title", metavar="TEXT", help="of the job (default: the images and the model)")
    there = parser.add_mutually_exclusive_group()
    there.add_argument(
        "--resume",
        metavar="J57",
        help="go on in a job of this command that failed or was killed, with its own options",
    )
    there.add_argument(
        "--job",
        metavar="J99",
        help="work in this External job, which was built or cloned in cryoSPARC and has not run",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --resume: take other options than the job was made with, and begin anew (default: off)",
    )
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="work in this folder, and let the files travel through the server, when the project's directory "
        "is not mounted on this machine",
    )


def _with_jobs(option: Option) -> str:
    """What `--help` says of an option: here a model may be that of a job, too."""
    extra = ", or a job of `train` as J57" if option.name == "model" else ""
    return f"{option.description}{extra} (default: {option.shown})"


def _add_denoise(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Denoise the particles or micrographs of a job's output. The result is the output of an External job."
    )
    parser.set_defaults(work=run_in_job, make=make_denoise)
    _add_job(parser)
    images = parser.add_mutually_exclusive_group()
    several = "; several get a job each"
    images.add_argument(
        "--particles", nargs="+", metavar="J42:particles", help=f"job and output with particles{several}"
    )
    images.add_argument(
        "--micrographs", nargs="+", metavar="J10:exposures", help=f"job and output with micrographs{several}"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        metavar="J57",
        help="jobs of this command whose images are left out, in a set that has grown since (default: none)",
    )
    add_options(parser, DenoiseOptions, describe=_with_jobs)


def _add_extract_noise(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cut blocks that hold nothing but noise out of the micrographs of a job's output. They are files in "
        "the directory of an external job."
    )
    parser.set_defaults(work=run_in_job, make=make_extract_noise)
    _add_job(parser)
    parser.add_argument("--micrographs", metavar="J10:exposures", help="job and output with micrographs")
    add_options(parser, ExtractNoiseOptions)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure denoised particles against clean ones, or against others of the same particles whose noise "
        "is independent. Particles belong together by their uids."
    )
    parser.set_defaults(work=run_in_job, make=make_evaluate)
    _add_job(parser)
    parser.add_argument("--particles", metavar="J57:particles", help="job and output with denoised particles")
    parser.add_argument("--reference", metavar="J60:particles", help="the same without noise")
    parser.add_argument("--twin", metavar="J61:particles", help="the same with independent noise")
    parser.add_argument("--raw", metavar="J42:particles", help="the same before denoising, to see the gain")
    add_options(
        parser,
        EvaluateConfig,
        without=("denoised", "reference", "twin", "raw"),  # outputs of jobs, above
        describe=_with_jobs,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file of `cryohush evaluate`, without images (default: none)"
    )
    add_overrides(parser)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a model on particles with poses and the map that they were refined to, or on the two sums of "
        "frames of micrographs. The weights are in the directory of an external job; cryosparc_cryohush "
        "denoise --model J57 takes them."
    )
    parser.set_defaults(work=run_in_job, make=make_train)
    _add_job(parser)
    parser.add_argument(
        "--particles",
        metavar="J50:particles",
        help="particles of a 3D refinement; with --micrographs: where to cut boxes out (default: anywhere)",
    )
    parser.add_argument(
        "--micrographs",
        metavar="J3:micrographs",
        help="of Patch Motion Correction with 'Output denoiser training data', instead of a map",
    )
    parser.add_argument(
        "--box-px",
        type=int,
        metavar="N",
        help=f"with --micrographs: side of the boxes (default: {FRAMES_BOX_PX})",
    )
    parser.add_argument("--volume", metavar="J50:volume", help="the map of the same refinement")
    parser.add_argument("--mask", metavar="J50:mask", help="what is outside is not learnt (default: none)")
    parser.add_argument(
        "--half-set",
        choices=("A", "B"),
        help="only particles of this half set, and the half map of it (default: all, and the map)",
    )
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        default="reference",
        help="a YAML file of `cryohush train`, or a shipped preset; data and pairs in it do not count "
        "(default: %(default)s, which starts from the general model)",
    )
    add_overrides(parser)


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.description = "Give particles that were selected by their denoised images the raw ones back."
    parser.set_defaults(work=run_in_job, make=make_restore)
    _add_job(parser)
    parser.add_argument("--particles", metavar="J80:particles_selected", help="the selection")
    parser.add_argument(
        "--raw",
        metavar="J42:particles",
        nargs="+",
        help="the raw images (default: the inputs of the jobs that denoised them)",
    )


def _add_login(parser: argparse.ArgumentParser) -> None:
    parser.description = "Sign in to an instance of cryoSPARC 5; only you can read the token that is stored."
    parser.set_defaults(work=run_login)
    _add_signing_in(parser)
    parser.add_argument("--email", help="of your account (default: asked for)")
    parser.add_argument(
        "--days", type=int, default=14, metavar="N", help="that it lasts, at most 365 (default: %(default)s)"
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the projects, or the outputs of a project with particles or micrographs."
    parser.set_defaults(work=run_list)
    _add_signing_in(parser)
    parser.add_argument("--project", metavar="P3", help="the project (default: list the projects)")
    parser.add_argument("--workspace", metavar="W1", help="only this workspace (default: all)")


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Watch projects of cryoSPARC 5, until stopped, and run what users ask for in the browser: External "
        "jobs of cryohush that were cloned and connected, and completed jobs with a tag such as "
        "`cryohush: model=J60`."
    )
    parser.set_defaults(work=run_watch)
    _add_signing_in(parser)
    parser.add_argument("--project", metavar="P3", nargs="+", required=True, help="the projects")
    parser.add_argument(
        "--gpus", metavar="N", nargs="+", help="GPUs to use, one job on each at a time (default: one job)"
    )
    parser.add_argument(
        "--sbatch",
        type=Path,
        metavar="FILE",
        help="submit each job with this SLURM script, which gets its command line (default: start them here)",
    )
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="SLURM jobs at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--every", type=float, default=30.0, metavar="S", help="seconds between looks (default: %(default)g)"
    )


def _from_anywhere(word: str) -> str:
    """Return a word that names a file, `train.yaml` or `initial_weights=own.safetensors`, with its folder.

    Whoever goes on in the job, or watches for its clones, is elsewhere.
    """
    key, equals, name = word.rpartition("=")
    path = Path(name)
    return f"{key}{equals}{path.absolute()}" if path.suffix and path.is_file() else word


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0 if the job is completed; 1 after an error, told in one line on stderr and in the job, if there is
        one; 2 for wrong usage, or when the job was stopped by a signal or ended in cryoSPARC.
    """
    prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    line = shlex.join(["cryosparc_cryohush", *map(_from_anywhere, words)])
    arguments.command_line, arguments.build_parser = line, build_parser
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


if __name__ == "__main__":
    raise SystemExit(main())
