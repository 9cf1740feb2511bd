"""The job for the CCP-EM pipeliner, which is tried only where the pipeliner is installed."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_entry_point_names_the_class() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, _, target = setup["options.entry_points"]["ccpem_pipeliner.jobs"].strip().partition(" = ")
    module, _, class_name = target.partition(":")
    tree = ast.parse((ROOT / f"{module.removeprefix('cryohush.').replace('.', '/')}.py").read_text())
    (job,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    process_name = next(
        ast.literal_eval(node.value)
        for node in job.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROCESS_NAME"
    )
    assert process_name == name


def test_the_command_holds_what_was_filled_in_and_nothing_else() -> None:
    pytest.importorskip("pipeliner", reason="needs ccpem-pipeliner, which is no dependency of cryohush")
    from cryohush.relion_external.ccpem_pipeliner import DenoiseParticlesJob
    from cryohush.relion_external.cli import parse

    job = DenoiseParticlesJob()
    job.output_dir = "Denoise/job001/"
    job.joboptions["input_particles"].value = "Extract/job001/particles.star"
    job.joboptions["keep_above"].value = 8.0
    job.joboptions["nr_threads"].value = 2
    (command,) = job.get_commands()
    assert command.cmd[0] == "relion_cryohush"
    given = {name: text for name, text in parse(command.cmd[1:]).items() if text}
    assert given == {
        "command": "denoise",
        "o": "Denoise/job001/",
        "in_parts": "Extract/job001/particles.star",
        "model": "general",
        "blend": "0.0",
        "keep_above_angstrom": "8.0",
        "threads": "2",
    }
    job.create_output_nodes()
    assert [node.name for node in job.output_nodes] == [
        "Denoise/job001/particles.star",
        "Denoise/job001/logfile.pdf",
    ]
