"""What the doctor finds on machines that lack something."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cryohush.core import doctor
from cryohush.core.inference.gpu_driver import driver_version, torch_index, why_no_gpu

# The first lines of the file as drivers of two kinds write it.
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 17 22:55:48 UTC 2024\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


@pytest.fixture
def driver_file(tmp_path: Path) -> Path:
    return tmp_path / "version"


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, 535), (OPEN, 580), ("nothing", None)])
def test_the_driver_tells_its_version(driver_file: Path, text: str, version: int | None) -> None:
    driver_file.write_text(text)
    assert driver_version(driver_file) == version


def test_without_a_driver_there_is_nothing_to_explain(driver_file: Path) -> None:
    assert driver_version(driver_file) is None
    assert why_no_gpu(driver_file) is None


@pytest.mark.parametrize(
    ("cuda", "text", "words"),
    [
        (None, OPEN, ["built for the CPU", "whl/cu130"]),
        ("13.0", PROPRIETARY, ["535 is too old", "driver 580 or newer", "whl/cu126"]),
        ("13.0", OPEN, ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        ("12.6", PROPRIETARY, ["finds no GPU"]),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_explained(
    driver_file: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, text: str, words: list[str]
) -> None:
    driver_file.write_text(text)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = why_no_gpu(driver_file)
    assert said is not None
    assert all(word in said for word in words), said


def test_the_index_is_the_newest_that_the_driver_runs() -> None:
    assert [torch_index(driver) for driver in (600, 580, 575, 535, 470)] == [
        "cu130",
        "cu130",
        "cu128",
        "cu126",
        "cpu",
    ]


def test_a_sound_machine_has_no_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_relion", lambda: doctor.Finding("ok", "RELION", "left out"))
    findings = list(doctor.examine())
    assert not [finding for finding in findings if finding.state == "problem"]
    assert {"cryohush", "Python", "torch", "models", "extras"} <= {finding.subject for finding in findings}


def test_relion_without_our_program_on_the_path_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "relion_refine"
    program.write_text("#!/bin/sh\necho RELION version: 4.0.1-commit-abc\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    finding = doctor._relion()
    assert finding.state == "problem"
    assert "4.0.1" in finding.text
    (tmp_path / "relion_cryohush").write_text("#!/bin/sh\n")
    (tmp_path / "relion_cryohush").chmod(0o755)
    assert doctor._relion().state == "ok"


@pytest.fixture
def instance() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_instance_is_reached_or_its_address_questioned(instance: str) -> None:
    assert list(doctor._cryosparc(instance))[-1].state == "ok"
    nobody = list(doctor._cryosparc("http://127.0.0.1:1"))[-1]
    assert nobody.state == "problem"
    assert "cannot be reached" in nobody.text
    assert list(doctor._cryosparc("no address"))[-1].state == "problem"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    finding = doctor._writable("temporary", tmp_path, "Set TMPDIR.")
    assert finding.state == "note"
    assert str(tmp_path) in str(finding)
    assert "Set TMPDIR." in str(finding)
