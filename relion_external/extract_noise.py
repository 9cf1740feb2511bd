"""The work of `relion_cryohush extract-noise`: RELION's options in, a stack of noise and its table out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.config.load import load_yaml, validate
from ..core.errors import ConfigurationError
from ..core.report import PDF_NAME
from .denoise import WARNINGS, ProgressLine, find_input
from .project import NODE_LABELS, Project, write_output_nodes


def extract_noise(
    directory: Path,
    given: Mapping[str, str | None],
    command: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Cut blocks of noise out of `in_mics` into the job directory, and leave the table of RELION's outputs.

    Parameters
    ----------
    directory
        The job directory as RELION gave it, relative to the project, which is the working directory.
    given
        The command line: name to text, None for a bare flag.
    command
        The command line as it was, for the log and the record.
    should_stop
        Asked once per micrograph.

    Raises
    ------
    CryohushError
        Whatever the user should know; `Aborted` when `should_stop` said so.
    """
    options = read_noise_options(given)
    kind, source = find_input(given)
    if kind != "micrographs":
        raise ConfigurationError(
            f"expected micrographs, found the particles {source}. Fill in the field 'Input micrographs' on "
            "the Input tab of the External job, and leave 'Input particles' empty."
        )
    project = Project.of_job(directory, source, kind)
    host = f"project of RELION {project.version}" if project.version else "not started by RELION"
    print(f"cryohush {__version__}, {host}\ncommand: {command}", flush=True)
    # Heavy: torch. Nothing that a user can mistype is still unread by now.
    from ..core.inference.extract_noise import extract_noise as extract
    from ..core.inference.noise_output import TABLE_NAME
    from ..core.report.noise import report_noise
    from ..core.report.overlays import write_overlay

    summary = extract(
        source,
        directory,
        options,
        root=Path.cwd(),
        resume=True,
        start_anew_on_mismatch=True,
        draw=write_overlay,
        progress=ProgressLine(kind=kind),
        should_stop=should_stop,
        log=lambda line: print(line, flush=True),
        command=command,
    )
    report_noise(summary, command)
    # the blocks are a stack with a table of its own, which RELION knows as particles
    label = NODE_LABELS["particles"].get(project.version or "")
    write_output_nodes(directory, Project(project.version, label), table=TABLE_NAME, pdf=PDF_NAME)
    remarks = [count for count in summary.counts if count.remark]
    for count in remarks[:WARNINGS]:
        print(f"WARNING: {count.micrograph}: {count.remark}", file=sys.stderr)
    print(f"{summary.n_blocks} blocks of {summary.window_px} px in {summary.table}")
    print(summary.explanation)


def read_noise_options(given: Mapping[str, str | None]) -> ExtractNoiseOptions:
    """Return the options of the command line on top of those of the configuration file that it may name.

    Parameters
    ----------
    given
        Name of the option to its text; None for a flag without a value, which is as good as none, but for
        `skip_bad`, which it turns on.

    Raises
    ------
    ConfigurationError
        If an option does not fit, or both `gpu` and `device` are given.
    """
    values: dict[str, Any] = {
        name: given[name] for name in ExtractNoiseOptions.model_fields if given.get(name)
    }
    if "skip_bad" in given and not given["skip_bad"]:
        values["skip_bad"] = "yes"
    if given.get("gpu"):
        if "device" in values:
            raise ConfigurationError("both gpu and device are given: leave one of them out.")
        values["device"] = given["gpu"]
    if given.get("config"):
        file = load_yaml(str(given["config"]), ExtractNoiseOptions)
        values = file.model_dump(exclude_unset=True) | values
    return validate(values, ExtractNoiseOptions, "parameters")
