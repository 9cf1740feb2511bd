"""A metric of another package is asked for by name, and refused with the reason where it is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from evaluation_files import write_files
from stranger import installed

from cryohush.core.cli import main
from cryohush.core.errors import ConfigurationError
from cryohush.core.metrics.image import image_metrics

SOURCE = """
def largest_difference(images, reference, mask):
    return (images - reference).abs().amax((-2, -1))

def one_for_all(images, reference, mask):
    return (images - reference).mean()

def broken(images, reference, mask):
    return images.no_such_thing
"""
POINTS = "[cryohush.metrics]\nlargest_difference = strange_metrics:largest_difference\n"


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path / "site", "strange_metrics", SOURCE, POINTS):
        yield


def test_evaluate_reports_it_beside_ours(stranger: None, tmp_path: Path) -> None:
    files = write_files(tmp_path)
    words = ["evaluate", "--denoised", str(files["denoised"]), "--reference", str(files["clean"])]
    assert main([*words, "--metrics", "largest_difference", "mse", "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["against_clean"]["denoised"]
    difference = files.images["denoised"] - files.images["clean"]
    assert found["largest_difference"]["mean"] == pytest.approx(abs(difference).max((1, 2)).mean(), rel=1e-5)
    assert "mse" in found


def test_what_is_no_metric_is_refused(
    stranger: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.zeros(3, 16, 16)
    with pytest.raises(ConfigurationError, match=r"one_for_all should return .* \(3,\), and returns \(\)"):
        image_metrics(images, images, ["strange_metrics:one_for_all"])
    with pytest.raises(ConfigurationError, match=r"broken fails: AttributeError: .*no_such_thing"):
        image_metrics(images, images, ["strange_metrics:broken"])
    words = ["evaluate", "--denoised", "a.mrcs", "--reference", "b.mrcs", "--output", str(tmp_path / "o")]
    assert main([*words, "--metrics", "largest_differenze"]) == 1
    assert "unknown metric 'largest_differenze'" in capsys.readouterr().err
