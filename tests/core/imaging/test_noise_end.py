"""Where the noise of images ends, which low-passed, blurred, enlarged and denoised ones have too early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cryohush
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.imaging.rings import frequency_grid, noise_ends_at

REAL = Path(__file__).parents[3] / "examples" / "data" / "particles.star"


def white(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def enlarged(images: Tensor) -> Tensor:
    y, x = images.shape[1:]
    transform = torch.fft.fftshift(torch.fft.fft2(images), dim=(1, 2))
    padded = torch.nn.functional.pad(transform, (x // 2, x // 2, y // 2, y // 2))
    return torch.fft.ifft2(torch.fft.ifftshift(padded, dim=(1, 2))).real


@pytest.mark.parametrize(
    ("limit", "cut"), [(0.45, False), (0.45, True), (0.3, False), (0.3, True), (0.15, True), (0.07, False)]
)
def test_where_noise_ends_is_found(limit: float, cut: bool) -> None:
    """Of a whole image, and of a box cut out of it, whose borders do not meet."""
    transform = torch.fft.rfft2(white(3, 192, 256))
    transform[:, frequency_grid((192, 256)) > limit] = 0
    images = torch.fft.irfft2(transform, s=(192, 256))
    end = noise_ends_at(images[:, 20:116, 30:126] if cut else images)
    assert end is not None
    assert end == pytest.approx(limit, abs=0.03)


@pytest.mark.parametrize(
    "filtered", [lambda a: gaussian_filter(a, 1.2), lambda a: gaussian_filter(a, 3.0), enlarged]
)
def test_blurred_and_enlarged_images_have_an_end(filtered: Callable[[Tensor], Tensor]) -> None:
    assert noise_ends_at(filtered(white(4, 96, 96))) is not None


def with_gradient(images: Tensor) -> Tensor:
    return images + 40 * torch.linspace(0, 1, images.shape[-1])


def with_strong_particles(images: Tensor) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(side) - side // 2 for side in images.shape[1:]), indexing="ij")
    return images - 20 * (torch.hypot(y.float(), x.float()) < 25)


def of_a_poor_detector(images: Tensor) -> Tensor:
    """A tenth of the amplitude is left at Nyquist."""
    shape = (images.shape[1], images.shape[2])
    transfer = 10 ** (-2 * frequency_grid(shape))
    return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=shape)


@pytest.mark.parametrize(
    "made",
    [
        lambda a: a,
        with_gradient,
        with_strong_particles,
        of_a_poor_detector,
        lambda a: of_a_poor_detector(with_strong_particles(a)),
        lambda a: (3 * a).round(),
        lambda a: torch.poisson((0.3 * a).exp(), generator=torch.Generator().manual_seed(1)),
        lambda a: 1e4 + 0.1 * a.cumsum(-1) + a,
    ],
)
@pytest.mark.parametrize("shape", [(6, 64, 64), (2, 400, 512)])
def test_noise_of_detectors_has_no_end(made: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> None:
    assert noise_ends_at(made(white(*shape))) is None


def test_real_particles_have_no_end_and_denoised_ones_have() -> None:
    raw = cryohush.read_images(REAL, rows=range(16))
    assert noise_ends_at(torch.from_numpy(raw)) is None
    denoised = cryohush.denoise(raw, device="cpu", precision="fp32")
    assert noise_ends_at(torch.from_numpy(denoised)) is not None
