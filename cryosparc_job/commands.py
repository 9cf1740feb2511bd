"""What the commands of `cryosparc_cryohush` do. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.cli import stop_flag
from ..core.commands import run_plan
from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.errors import Aborted, ConfigurationError, CryohushError

if TYPE_CHECKING:
    from ..core.batch.sources import Host
    from .command import Command
    from .instance import Instance
    from .job import ExternalJob
    from .project import Project


def _url(arguments: argparse.Namespace) -> str:
    from .credentials import normalise_url

    if not arguments.url:
        raise ConfigurationError("--url is missing, as in --url https://host:39000.")
    return normalise_url(arguments.url)


def _sign_in(arguments: argparse.Namespace, secrets: list[str]) -> Instance:
    from .credentials import read_credentials
    from .sign_in import sign_in

    url = _url(arguments)
    credentials = read_credentials(arguments.credentials, os.environ)
    secrets += credentials.secrets
    return sign_in(url, credentials)


def run_in_job(arguments: argparse.Namespace, secrets: list[str]) -> int:
    """Do a command in a job of its own, or in the one that is named."""
    try:
        return _do(arguments, secrets)
    except CryohushError as error:
        if arguments.watched:  # nobody is at a terminal: the job is told what is wrong
            from .project import Project
            from .watch import fail_card

            with contextlib.closing(_sign_in(arguments, secrets)) as instance:
                uid = arguments.resume or arguments.job
                fail_card(Project(instance, arguments.project), uid, arguments.command, str(error))
        raise


def _do(arguments: argparse.Namespace, secrets: list[str]) -> int:
    named = arguments.resume or arguments.job
    # what is wrong with the options is said before anything is asked of the server
    made = None if named else arguments.make(arguments)
    from .execution import Request, run_command
    from .project import Project
    from .record import Record, new_mark

    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        instance.refusals_may_pass = arguments.watched
        project, job = Project(instance, arguments.project), None
        record = Record(arguments.command_line, "")
        if made is None:
            from .recall import recall

            job, arguments, record = recall(arguments.build_parser, project, arguments)
            if arguments.watched:
                _refuse_files(arguments, project.directory())
            made = arguments.make(arguments)
        codes = []
        for outputs, line in _each(arguments, job, record.command_line):
            request = Request(
                arguments.workspace,
                outputs,
                Record(line, record.mark or new_mark(), record.origin),
                job,
                arguments.scratch,
                arguments.title,
                arguments.watched,
                may_begin_anew=arguments.force or not arguments.resume,
            )
            codes.append(run_command(project, request, made(project, job)))
        return max(codes)


def _refuse_files(arguments: argparse.Namespace, directory: Path) -> None:
    """Raise if a card, which others than this user may have written, names a text outside of the project.

    What it names without a folder is in that of the project.
    """
    value = str(getattr(arguments, "config", None) or "")
    if "/" not in value and not Path(value).suffix:  # a preset, or nothing
        return
    path = directory / value
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ConfigurationError(
            f"--config {value}: watch takes files of the project only. Put it below {directory}, and name it "
            "so in the description of the card."
        )
    arguments.config = type(arguments.config)(path)


def _each(
    arguments: argparse.Namespace, job: ExternalJob | None, line: str
) -> list[tuple[dict[str, str | None], str]]:
    """Return the outputs that a command takes, and its line, for each job that it is done in."""
    names = {"exposures": "micrographs"} | {
        name: name for name in ("particles", "reference", "twin", "raw", "volume", "mask")
    }
    given = {name: getattr(arguments, option, None) for name, option in names.items()}
    if arguments.command == "restore":
        del given["raw"]  # it finds them itself
    several, texts = next(
        ((name, texts) for name, texts in given.items() if isinstance(texts, list)), ("", [])
    )
    if not texts:
        return [(given, line)]
    if job is not None and len(texts) > 1:
        raise ConfigurationError(f"--{names[several]}: {job.uid} takes one output. Leave the others out.")
    words = shlex.split(line)
    lines = {text: [word for word in words if word == text or word not in texts] for text in texts}
    return [({**given, several: text}, shlex.join(of)) for text, of in lines.items()]


def make_denoise(arguments: argparse.Namespace) -> Callable[[Project, ExternalJob | None], Command]:
    from ..core.config.load import COMMAND_LINE, validate

    options = validate(_given(arguments, DenoiseOptions.model_fields), DenoiseOptions, COMMAND_LINE)

    def make(project: Project, job: ExternalJob | None) -> Command:
        from .denoise import denoising
        from .outputs import KINDS, MICROGRAPHS, PARTICLES

        given = {PARTICLES: arguments.particles, MICROGRAPHS: arguments.micrographs}
        kind = next((kind for kind, texts in given.items() if texts), None)
        if job is not None:
            kind = next((kind for kind in KINDS if job.connections(kind.name)), kind)
        if kind is None:
            raise ConfigurationError(
                "neither --particles nor --micrographs is given, as in --particles J42:particles."
            )
        return denoising(project, kind, options, arguments.without or ())

    return make


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def make_extract_noise(arguments: argparse.Namespace) -> Callable[[Project, ExternalJob | None], Command]:
    from ..core.config.load import COMMAND_LINE, validate

    given = _given(arguments, ExtractNoiseOptions.model_fields)
    options = validate(given, ExtractNoiseOptions, COMMAND_LINE)

    def make(project: Project, job: ExternalJob | None) -> Command:
        from .extract_noise import extraction

        return extraction(project, options)

    return make


def make_evaluate(arguments: argparse.Namespace) -> Callable[[Project, ExternalJob | None], Command]:
    from ..core.config.load import read_yaml

    if arguments.overrides and not arguments.config:
        raise ConfigurationError("--set changes a configuration file: give --config.")
    values = read_yaml(arguments.config, arguments.overrides) if arguments.config else {}
    images = ("particles", "reference", "twin", "raw")
    values |= _given(arguments, [name for name in EvaluateConfig.model_fields if name not in images])

    def make(project: Project, job: ExternalJob | None) -> Command:
        from .evaluate import evaluation

        return evaluation(project, values)

    return make


def make_train(arguments: argparse.Namespace) -> Callable[[Project, ExternalJob | None], Command]:
    from ..core.config.load import find_preset, read_yaml

    values = read_yaml(find_preset(arguments.config), arguments.overrides)
    wrong = [name for name in ("volume", "mask", "half_set") if getattr(arguments, name)]
    if arguments.micrographs and wrong:
        flag = wrong[0].replace("_", "-")
        raise ConfigurationError(f"--{flag} makes no sense with --micrographs: leave one of them out.")
    if arguments.box_px is not None and arguments.volume:
        raise ConfigurationError("--box-px is for --micrographs: leave it out.")

    def make(project: Project, job: ExternalJob | None) -> Command:
        from .train import training
        from .train_frames import training_on_frames

        if arguments.micrographs or (job is not None and job.connections("exposures")):
            return training_on_frames(project, values, arguments.box_px)
        return training(project, values, arguments.half_set)

    return make


def make_restore(arguments: argparse.Namespace) -> Callable[[Project, ExternalJob | None], Command]:
    def make(project: Project, job: ExternalJob | None) -> Command:
        from .restore import restoring

        return restoring(project, arguments.raw or ())

    return make


def run_batch(arguments: argparse.Namespace, secrets: list[str]) -> int:
    with contextlib.ExitStack() as exits, stop_flag() as should_stop:

        def hosts(folder: Path, command: str) -> dict[str, Host]:
            from ..core.config.batch import BatchPlan
            from ..core.config.load import load_yaml

            if all(source.host != "cryosparc" for source in load_yaml(arguments.plan, BatchPlan).sources):
                return {}
            from .host import CryosparcProjects
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


def run_login(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from .sign_in import login

    login(_url(arguments), arguments.email, arguments.days, secrets)
    return 0


def run_list(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from .listing import list_outputs, list_projects
    from .project import Project

    with contextlib.closing(_sign_in(arguments, secrets)) as instance:
        if arguments.project is None:
            lines = list_projects(instance)
        else:
            lines = list_outputs(Project(instance, arguments.project), arguments.workspace)
    print("\n".join(lines))
    return 0


def run_watch(arguments: argparse.Namespace, secrets: list[str]) -> int:
    from .watch import watch

    with contextlib.closing(_sign_in(arguments, secrets)) as instance, stop_flag() as should_stop:
        return watch(instance, arguments, arguments.build_parser, should_stop)
