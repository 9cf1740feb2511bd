"""`cryosparc_cryohush`: external jobs of cryoSPARC. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.cli import add_batch, run_plan, stop_flag
from ..core.config.base import Option, add_options
from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.errors import Aborted, ConfigurationError, CryohushError

if TYPE_CHECKING:
    from ..core.batch.sources import Host
    from .command import Request
    from .instance import Instance


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
    _add_extract_noise(
        commands.add_parser("extract-noise", help="cut blocks of pure noise out of micrographs")
    )
    _add_train(commands.add_parser("train", help="train a model on particles with poses and their map"))
    _add_evaluate(commands.add_parser("evaluate", help="measure how good denoised particles are"))
    _add_restore(commands.add_parser("restore", help="give a selection of denoised particles its raw images"))
    batch = commands.add_parser("batch", help="run a plan of many sources")
    add_batch(batch)
    _add_signing_in(batch)
    batch.set_defaults(work=_batch)
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
    parser.add_argument("--resume", metavar="J57", help="go on in a job that failed or was killed")
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
        "Denoise the particles or micrographs of a job's output. The result is an external job's."
    )
    parser.set_defaults(work=_denoise)
    _add_job(parser)
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--particles", metavar="J42:particles", help="job and output with particles")
    images.add_argument("--micrographs", metavar="J10:exposures", help="job and output with micrographs")
    add_options(parser, DenoiseOptions, describe=_with_jobs)


def _add_extract_noise(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cut blocks that hold nothing but noise out of the micrographs of a job's output. They are files in "
        "the directory of an external job."
    )
    parser.set_defaults(work=_extract_noise)
    _add_job(parser)
    parser.add_argument("--micrographs", metavar="J10:exposures", help="job and output with micrographs")
    add_options(parser, ExtractNoiseOptions)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure denoised particles against clean ones, or against others of the same particles whose noise "
        "is independent. Particles belong together by their uids."
    )
    parser.set_defaults(work=_evaluate)
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
    _add_overrides(parser)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a model on particles with poses and the map that they were refined to. The weights are in the "
        "directory of an external job; cryosparc_cryohush denoise --model J57 takes them."
    )
    parser.set_defaults(work=_train)
    _add_job(parser)
    parser.add_argument("--particles", metavar="J50:particles", help="particles of a 3D refinement")
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
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace an entry of the configuration; may be repeated (default: none)",
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

    options = validate(_given(arguments, DenoiseOptions.model_fields), DenoiseOptions, "command line")
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


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _request(arguments: argparse.Namespace, **outputs: str | None) -> Request:
    from .command import Request

    return Request(
        project=arguments.project,
        workspace=arguments.workspace,
        outputs=outputs,
        resume=arguments.resume,
        scratch=arguments.scratch,
        command=arguments.command_line,
    )


def _extract_noise(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from ..core.config.extract_noise import ExtractNoiseOptions
    from ..core.config.load import validate

    given = _given(arguments, ExtractNoiseOptions.model_fields)
    options = validate(given, ExtractNoiseOptions, "command line")
    from .extract_noise import extract_noise

    request = _request(arguments, exposures=arguments.micrographs)
    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        return extract_noise(instance, request, options)


def _evaluate(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from ..core.config.evaluate import EvaluateConfig
    from ..core.config.load import read_yaml

    if arguments.overrides and not arguments.config:
        raise ConfigurationError("--set changes a configuration file: give --config.")
    values = read_yaml(arguments.config, arguments.overrides) if arguments.config else {}
    images = ("particles", "reference", "twin", "raw")
    values |= _given(arguments, [name for name in EvaluateConfig.model_fields if name not in images])
    from .evaluate import evaluate

    request = _request(arguments, **{name: getattr(arguments, name) for name in images})
    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        return evaluate(instance, request, values)


def _train(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from ..core.config.load import find_preset, read_yaml

    values = read_yaml(find_preset(arguments.config), arguments.overrides)
    from .train import train

    request = _request(arguments, particles=arguments.particles, volume=arguments.volume, mask=arguments.mask)
    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        return train(instance, request, values, arguments.half_set)


def _batch(arguments: argparse.Namespace, secrets: list[str]) -> int:
    with contextlib.ExitStack() as exits, stop_flag() as should_stop:

        def hosts(folder: Path, command: str) -> dict[str, Host]:
            from ..core.config.batch import BatchPlan
            from ..core.config.load import load_yaml

            if all(source.host != "cryosparc" for source in load_yaml(arguments.plan, BatchPlan).sources):
                return {}
            from .batch import CryosparcProjects
            from .worker import without_secrets

            instance = exits.enter_context(contextlib.closing(_sign_in(arguments, secrets)))
            # workers get the environment of this process
            for name in os.environ.keys() - without_secrets(os.environ):
                del os.environ[name]
            tables = exits.enter_context(tempfile.TemporaryDirectory(prefix="cryohush-"))
            return {"cryosparc": CryosparcProjects(instance, Path(tables), command)}

        arguments.hosts = hosts
        try:
            run_plan(arguments, should_stop)
        except Aborted as error:
            print(error, file=sys.stderr)
            return 2
    return 0


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
