"""What a comparison says first, and that its figures name things with units and letter by letter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cryohush.core.config.evaluate import IMAGE_METRICS
from cryohush.core.evaluation.figures import correlation_curves, histograms, picked_micrograph, scatter
from cryohush.core.evaluation.names import figure_name
from cryohush.core.evaluation.sections import verdict_of

AWKWARD = r"$\foo_1^{$ 50$%"


def compared(**means: float) -> dict[str, Any]:
    """Comparisons of 200 images each that vary together by 0.05, and by 0.01 on their own."""
    random = np.random.default_rng(1)
    common = random.normal(0, 0.05, 200)
    return {
        name: SimpleNamespace(values={"correlation": mean + common + random.normal(0, 0.01, 200)})
        for name, mean in means.items()
    }


@pytest.mark.parametrize(
    ("means", "judgement", "says"),
    [
        ({"denoised": 0.5, "raw": 0.2, "gaussian": 0.4}, "good", "classical denoisers, Gaussian, from"),
        # within the errors of both, but not image by image
        ({"denoised": 0.505, "raw": 0.2, "gaussian": 0.5}, "good", "image by image"),
        ({"denoised": 0.5, "raw": 0.2, "gaussian": 0.5}, "note", "image by image"),
        (
            {"denoised": 0.5, "raw": 0.2, "gaussian": 0.6, "mean": 0.3},
            "note",
            "classical denoisers, Gaussian, from",
        ),
        ({"denoised": 0.5, "raw": 0.2}, "note", "--baselines gaussian"),
        ({"denoised": 0.1, "raw": 0.2, "gaussian": 0.05}, "bad", "lost signal"),
    ],
)
def test_only_what_beats_raw_images_and_classical_denoisers_is_called_good(
    means: dict[str, float], judgement: str, says: str
) -> None:
    verdict = verdict_of(compared(**means), np.arange(200), "clean")
    assert verdict is not None
    assert verdict.judgement == judgement
    assert says in verdict.text


def test_without_raw_images_the_verdict_asks_for_them() -> None:
    verdict = verdict_of(compared(denoised=0.5), np.arange(200), "independent")
    assert verdict is not None
    assert "Give the raw images" in verdict.text


def test_without_correlations_there_is_none() -> None:
    found: Any = {"denoised": SimpleNamespace(values={"psnr": np.ones(4)})}
    assert verdict_of(found, np.arange(4), "clean") is None


def test_figures_with_a_unit_have_it_in_their_name() -> None:
    units = {"mse": "(grey value²)", "mae": "(grey value)", "rmse": "(grey value)", "psnr": "(dB)"}
    assert units.keys() <= set(IMAGE_METRICS)
    for metric, unit in units.items():
        assert figure_name(metric).endswith(unit)


def drawn(figure: Figure) -> list[str]:
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def test_a_users_names_are_drawn_letter_by_letter() -> None:
    zeros = np.zeros((4, 2))
    picture = picked_micrograph(np.eye(16, dtype=np.float32), zeros, zeros, 3.0, AWKWARD)
    # an odd number of dollars, or TeX that does not exist, would raise here
    assert any(text.startswith(AWKWARD.replace("$", r"\$")) for text in drawn(picture))
    values = {AWKWARD: {"raw": np.arange(4.0), "denoised": np.arange(4.0)}}
    assert AWKWARD.replace("_", " ").replace("$", r"\$") in drawn(histograms(values))
    classes = np.array([AWKWARD, AWKWARD, "b", "b"])
    assert f"conformation {AWKWARD}".replace("$", r"\$") in drawn(scatter({"raw": zeros}, classes))


def test_curves_that_coincide_are_all_to_be_seen() -> None:
    curve = (torch.linspace(1, 0, 17), torch.zeros(17))
    figure = correlation_curves(
        {"denoised": curve, "raw": curve, "gaussian": curve},
        torch.linspace(0, 0.25, 17),
        2.0,
        thresholds=(),
        label="FRC",
    )
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 16]
    widths = [line.get_linewidth() for line in lines]
    # what is drawn later lies on top, and is thinner
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
