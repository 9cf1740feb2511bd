"""Figures of merit and methods as reports call them, with their units."""

from __future__ import annotations

_FIGURES = {
    "mse": "MSE (grey value²)",
    "mae": "MAE (grey value)",
    "rmse": "RMSE (grey value)",
    "pmse": "PMSE",
    "nmse": "NMSE",
    "affine_nmse": "affine NMSE",
    "psnr": "PSNR (dB)",
    "affine_psnr": "affine PSNR (dB)",
    "ssim": "SSIM",
    "affine_ssim": "affine SSIM",
    "ssim_uniform": "SSIM, uniform window",
    "correlation_fine": "correlation, fine detail",
    "unbiased_mse": "unbiased MSE (grey value²)",
    "unbiased_mse_fine": "the same, fine detail",
    "unbiased_mse_best_scale": "the same, best scale",
    "unbiased_mse_fine_best_scale": "the same, fine detail, best scale",
}
_METHODS = {
    "gaussian": "Gaussian",
    "low_pass": "low-pass",
    "non_local_means": "non-local means",
    "bm3d": "BM3D",
    "radial_wiener": "radial Wiener",
    "covariance_wiener": "covariance Wiener",
}


def figure_name(metric: str) -> str:
    """Return what a report calls a figure of merit; those of other packages keep their names."""
    return _FIGURES.get(metric, metric.replace("_", " "))


def method_name(method: str) -> str:
    """Return what a report calls a kind of images or a classical denoiser."""
    return _METHODS.get(method, method.replace("_", " "))
