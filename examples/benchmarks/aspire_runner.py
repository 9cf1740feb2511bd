"""Covariance Wiener filter by ASPIRE through its Python API; runs in ASPIRE's own environment.

    ASPIRE_PYTHON aspire_runner.py IN.npz OUT.npy

IN.npz holds `images` `(n, y, x)` float32 with white noise, their `noise_variance`, and, where they have a
CTF, `transfer` `(g, y, x // 2 + 1)` on numpy's rfft2 grid and `group` `(n,)`. Mean and covariance are
estimated and the images filtered in ASPIRE's fast Fourier-Bessel basis with its own defaults: what `aspire
denoise` does, without its reading and down-sampling. OUT.npy gets the images without CTF. Prints one line
of JSON: the seconds of the estimate and of the filter. ASPIRE (GPL-3) is never imported by cryohush: this
script is the only place that does.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from aspire.basis import FFBBasis2D
from aspire.covariance import RotCov2D
from aspire.image import Image
from aspire.operators import ArrayFilter


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoise particles with ASPIRE's covariance Wiener filter.")
    parser.add_argument("input")
    parser.add_argument("output")
    arguments = parser.parse_args()
    with np.load(arguments.input) as file:
        given = dict(file)
    images = given["images"]
    box = images.shape[-1]
    basis = FFBBasis2D((box, box), dtype=np.float32)
    begin = time.perf_counter()
    through: dict[str, Any] = {}
    if "transfer" in given:
        filters = [ArrayFilter(full_grid(half)) for half in given["transfer"]]
        through = {
            "ctf_basis": [basis.filter_to_basis_mat(one) for one in filters],
            "ctf_idx": given["group"],
        }
    coefficients = basis.evaluate_t(Image(images))
    covariance = RotCov2D(basis)
    noise = float(given["noise_variance"])
    mean = covariance.get_mean(coefficients, **through)
    found = covariance.get_covar(coefficients, mean_coef=mean, noise_var=noise, **through)
    middle = time.perf_counter()
    filtered = covariance.get_cwf_coefs(
        coefficients, mean_coef=mean, covar_coef=found, noise_var=noise, **through
    )
    denoised = basis.evaluate(filtered).asnumpy()
    end = time.perf_counter()
    np.save(arguments.output, denoised.astype(np.float32))
    print(json.dumps({"estimate_s": middle - begin, "filter_s": end - middle, "images": len(images)}))


def full_grid(half: np.ndarray) -> np.ndarray:
    """Real factors on the grid of rfft2 to those of fft2 with zero frequency in the middle."""
    box = half.shape[0]
    image = np.fft.irfft2(half, s=(box, box))
    return np.fft.fftshift(np.fft.fft2(image).real).astype(half.dtype)


if __name__ == "__main__":
    main()
