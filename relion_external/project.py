"""Which RELION started this job, and the table in which it looks for the job's outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..core.io.files import write_text

OUTPUT_NODES = "RELION_OUTPUT_NODES.star"

# What a job works on, and what else may be listed in a table that RELION knows.
Kind = Literal["particles", "micrographs"]
NodeKind = Literal["particles", "micrographs", "coordinates"]

# RELION 3.1 numbers the kinds of nodes, 4 and 5 name them; these differ in the names.
NODE_NUMBERS: dict[NodeKind, int] = {"particles": 3, "micrographs": 1, "coordinates": 2}
NODE_LABELS: dict[NodeKind, dict[str, str]] = {
    "particles": {"4": "ParticlesData.star.relion", "5": "ParticleGroupMetadata.star.relion"},
    "micrographs": {"4": "MicrographsData.star.relion", "5": "MicrographGroupMetadata.star.relion"},
    "coordinates": {"4": "MicrographsCoords.star.relion", "5": "MicrographCoordsGroup.star.relion"},
}
PDF_NUMBER, PDF_LABEL = 13, "LogFile.pdf.relion"
NODE_COLUMNS = ("_rlnPipeLineNodeName", "_rlnPipeLineNodeType", "_rlnPipeLineNodeTypeLabel")


@dataclass(frozen=True)
class Project:
    """The RELION project that a job belongs to.

    Attributes
    ----------
    version
        ``"3.1"``, ``"4"``, ``"5"``, or None when the job was not started by RELION.
    label
        The name of this RELION for a table of the job's kind; None in 3.1, which has numbers only.
    """

    version: str | None
    label: str | None

    @classmethod
    def of_job(cls, directory: Path, source: str, kind: NodeKind = "particles") -> Project:
        """Recognise the RELION that started the job in `directory`.

        RELION writes ``job_pipeline.star`` before it starts a job; the row of the job's input, `source`,
        carries the label by which this RELION knows tables of its kind. ``job.star`` is the fallback: the
        input may be no node.
        """
        pipeline = _read(directory / "job_pipeline.star")
        row = re.search(rf"^\s*{re.escape(source)}\s+(\S+)", pipeline, re.MULTILINE)
        found = row[1].partition(".")[0] if row else ""
        if found == str(NODE_NUMBERS[kind]):
            return cls("3.1", None)
        for version, label in NODE_LABELS[kind].items():
            # only what stands before the first dot decides in which menu of inputs a node appears
            if found == label.partition(".")[0]:
                return cls(version, label)
        job = _read(directory / "job.star")
        if re.search(r"^\s*_rlnJobType\s", job, re.MULTILINE):
            return cls("3.1", None)
        if re.search(r"^\s*_rlnJobTypeLabel\s", job, re.MULTILINE):
            # RELION 4 still writes the version of 3.1.
            version = "5" if re.search(r"^# version 50001", job, re.MULTILINE) else "4"
            return cls(version, NODE_LABELS[kind][version])
        return cls(None, None)

    def listing(self, kind: NodeKind) -> Project:
        """Return the same for a job whose output lists another kind than its input."""
        return replace(self, label=NODE_LABELS[kind].get(self.version or ""))


def write_output_nodes(
    directory: Path,
    project: Project,
    *,
    table: str | None,
    pdf: str | None,
    kind: NodeKind = "particles",
    parts: Sequence[str] = (),
    root: Path = Path(),
) -> Path:
    """Write the table of outputs that RELION reads once, when it first sees the success marker.

    Parameters
    ----------
    directory
        The job directory, as RELION gave it: node names start with it.
    project
        Decides the columns. 3.1 needs the number and warns about a name, 4 and 5 need the name. Outside of
        a project both are written, which all of them accept.
    table, pdf
        File names in `directory`, None for what a job does not have.
    kind
        What the table lists, if there is one.
    parts
        File names of tables of parts of it.
    root
        The project's folder, when it is not the working directory.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    nodes = []
    label = project.label or NODE_LABELS[kind]["5"]
    for name in [*([] if table is None else [table]), *parts]:
        nodes.append((f"{directory}/{name}", str(NODE_NUMBERS[kind]), label))
    if pdf is not None:
        nodes.append((f"{directory}/{pdf}", str(PDF_NUMBER), PDF_LABEL))
    kept = {"3.1": (0, 1), None: (0, 1, 2)}.get(project.version, (0, 2))
    text = "\ndata_output_nodes\n\nloop_\n"
    text += "".join(f"{NODE_COLUMNS[column]} #{number}\n" for number, column in enumerate(kept, 1))
    text += "".join(" ".join(node[column] for column in kept) + "\n" for node in nodes) + "\n"
    path = root / directory / OUTPUT_NODES
    write_text(path, text)
    return path


def _read(path: Path) -> str:
    """Return the text of a file that RELION has written, or nothing where there is none."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
