"""The curves that a job shows in its event log."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..core.inference.summary import Summary
from ..core.io.files import writing
from ..core.metrics.fourier import pooled_fourier_ring_correlation, ring_frequencies
from ..core.report.figures import DENOISED_COLOUR, draw_spectra

SPECTRA, FRC = "Power by resolution", "Correlation of raw and denoised"


def draw_plots(summary: Summary) -> dict[str, Path]:
    """Draw `spectra.png` and `frc.png` into the run's output directory.

    Returns
    -------
    dict
        Caption and file of each; none if no image was denoised.

    Raises
    ------
    OutputError
        When a file cannot be written.
    """
    samples = summary.samples
    if not len(samples.raw):
        return {}
    spectra = Figure(figsize=(6.4, 4.0), layout="constrained")
    draw_spectra(
        spectra.subplots(), samples.raw, samples.denoised, pixel_size_angstrom=samples.pixel_size_angstrom
    )
    number = f"mean of {len(samples.raw)} images"
    return {
        f"{SPECTRA}, {number}. Where the residual runs along the raw curve, all was taken for noise.": _save(
            spectra, summary.output_dir / "spectra.png"
        ),
        f"{FRC}, {number}: how much of each ring was kept. It measures no resolution.": _save(
            _draw_frc(summary), summary.output_dir / "frc.png"
        ),
    }


def _draw_frc(summary: Summary) -> Figure:
    samples = summary.samples
    raw, denoised = torch.from_numpy(samples.raw), torch.from_numpy(samples.denoised)
    correlation = pooled_fourier_ring_correlation(denoised, raw)[1:]
    frequency = ring_frequencies((raw.shape[-2], raw.shape[-1]), samples.pixel_size_angstrom or 1.0)[1:]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(frequency.numpy(), correlation.numpy(), color=DENOISED_COLOUR, linewidth=1.4)
    axes.set_xlim(0.0, float(frequency[-1]))
    axes.set_ylim(min(0.0, float(correlation.min())), 1.02)
    axes.set_xlabel(f"spatial frequency ({'1/Å' if samples.pixel_size_angstrom else '1/px'})", fontsize=8)
    axes.set_ylabel("Fourier ring correlation", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.6)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=130)
    return path
