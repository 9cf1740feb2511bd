"""What comes out of a `Denoiser` has the input's size, order and grey scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from particle_files import noise

from cryohush.core.errors import ImageError
from cryohush.core.inference.denoiser import EDGE_FOURIER_PX, Denoiser
from cryohush.core.models.base import DenoisingNetwork
from cryohush.core.models.weights import LoadedModel, load_model


@pytest.fixture
def denoiser(model: LoadedModel) -> Denoiser:
    return Denoiser(model.module)


def spectrum(images: NDArray[np.float32]) -> NDArray[np.complex128]:
    return np.fft.fft2(images.astype(np.float64))


def frequencies(y: int, x: int) -> NDArray[np.float64]:
    """Cycles per pixel of each coefficient of `numpy.fft.fft2`."""
    return np.hypot(np.fft.fftfreq(y)[:, None], np.fft.fftfreq(x)[None, :])


@pytest.mark.parametrize(("y", "x"), [(16, 16), (17, 17), (16, 23), (31, 14), (5, 5), (6, 64)])
def test_any_box_comes_back_in_its_own_size(denoiser: Denoiser, y: int, x: int) -> None:
    images = noise(3, y, x)
    denoised = denoiser(images, radius_px=1.0)
    assert denoised.shape == images.shape
    assert denoised.dtype == np.float32
    assert np.isfinite(denoised).all()
    assert not np.allclose(denoised, images)


def test_the_input_is_never_written_to(denoiser: Denoiser) -> None:
    images = noise(2, 16, 16)
    images.flags.writeable = True
    before = images.copy()
    denoiser(images, blend=0.5, keep_above_px=3.0)
    np.testing.assert_array_equal(images, before)


def test_a_box_that_is_no_multiple_of_the_stride_is_mirrored_about_its_border_pixels(
    model: LoadedModel,
) -> None:
    images = noise(2, 14, 18)
    mirrored = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="reflect")  # 16 x 20, both multiples of 4
    mean, std = (statistic[:, None, None] for statistic in background(images, 5.0))
    with torch.inference_mode():
        expected = model.module(torch.from_numpy((mirrored - mean) / std)[:, None])[:, 0].numpy() * std + mean
    denoised = Denoiser(model.module)(images, radius_px=5.0)
    # single precision at a mean of 100; the network amplifies its input's rounding
    np.testing.assert_allclose(denoised, expected[:, 1:-1, 1:-1], rtol=1e-4)


def background(images: NDArray[np.float32], radius_px: float) -> tuple[NDArray[np.float32], ...]:
    """Mean and sd of each image outside the circle."""
    y, x = images.shape[-2:]
    outside = np.hypot(np.arange(y)[:, None] - y // 2, np.arange(x) - x // 2) > radius_px
    values = images[:, outside].astype(np.float64)
    return values.mean(1).astype(np.float32), values.std(1).astype(np.float32)


def test_an_image_is_the_same_whatever_its_company(denoiser: Denoiser) -> None:
    images = noise(9, 16, 16)
    together = denoiser(images)
    for size in (1, 2, 4):
        apart = np.concatenate([denoiser(images[i : i + size]) for i in range(0, 9, size)])
        # rounding of a convolution may depend on the size of the batch; values are about 100
        np.testing.assert_allclose(apart, together, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("factor", "offset"), [(7.0, 0.0), (0.01, -3.0), (1.0, 500.0)])
def test_the_grey_scale_is_kept(denoiser: Denoiser, factor: float, offset: float) -> None:
    images = noise(4, 16, 16) - 100
    expected = factor * denoiser(images) + offset
    scaled = denoiser((factor * images + offset).astype(np.float32))
    # the input itself is rounded to 24 bits of its largest value, which the network amplifies
    size = np.abs(factor * images).max()
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-4 * size + 1e-5 * abs(offset))


def test_bf16_differs_from_fp32_by_its_rounding_only(model: LoadedModel) -> None:
    images = noise(4, 32, 32)
    exact = Denoiser(model.module)(images) - 100
    rounded = Denoiser(model.module, precision="bf16")(images) - 100
    # 8 significant bits (0.4 %), through about ten layers
    assert np.abs(rounded - exact).std() < 0.03 * exact.std()
    assert np.abs(rounded - exact).max() > 0


@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_blend_is_a_share_of_the_raw_image(denoiser: Denoiser, blend: float) -> None:
    images = noise(2, 16, 16)
    denoised = denoiser(images)
    # one rounding at a value of about 100
    np.testing.assert_allclose(
        denoiser(images, blend=blend), denoised + blend * (images - denoised), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("y", "x"), [(32, 32), (33, 33), (24, 40)])
def test_beyond_the_limit_the_raw_coefficients_are_kept_and_well_below_it_the_denoised_ones(
    denoiser: Denoiser, y: int, x: int
) -> None:
    images, period_px = noise(2, y, x), 4.0
    raw, denoised = spectrum(images), spectrum(denoiser(images))
    kept = spectrum(denoiser(images, keep_above_px=period_px))
    frequency = frequencies(y, x)
    beyond = frequency >= 1 / period_px + 1e-6
    below = frequency <= 1 / period_px - EDGE_FOURIER_PX / max(y, x) - 1e-6
    assert beyond.any()
    assert below.any()
    # coefficients are of order 3 * sqrt(y x) ~ 100, their zeroth 1e5: single precision of that
    np.testing.assert_allclose(kept[:, beyond], raw[:, beyond], rtol=0, atol=0.05)
    np.testing.assert_allclose(kept[:, below], denoised[:, below], rtol=0, atol=0.05)
    assert np.abs(raw - denoised)[:, beyond].mean() > 1


def test_the_edge_between_denoised_and_raw_is_a_raised_cosine(denoiser: Denoiser) -> None:
    images, period_px, side = noise(1, 32, 32), 3.0, 32
    raw, denoised = spectrum(images), spectrum(denoiser(images))
    kept = spectrum(denoiser(images, keep_above_px=period_px))
    distance = np.clip((1 / period_px - frequencies(side, side)) * side / EDGE_FOURIER_PX, 0, 1)
    weight = np.cos(np.pi * distance / 2) ** 2
    np.testing.assert_allclose(kept, denoised + weight * (raw - denoised), rtol=0, atol=0.05)


def test_blend_and_kept_coefficients_go_together(denoiser: Denoiser) -> None:
    images = noise(1, 32, 32)
    raw, blended = spectrum(images), spectrum(denoiser(images, blend=0.4))
    both = spectrum(denoiser(images, blend=0.4, keep_above_px=4.0))
    beyond = frequencies(32, 32) >= 0.25 + 1e-6
    below = frequencies(32, 32) <= 0.25 - EDGE_FOURIER_PX / 32 - 1e-6
    np.testing.assert_allclose(both[:, beyond], raw[:, beyond], rtol=0, atol=0.05)
    np.testing.assert_allclose(both[:, below], blended[:, below], rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda image: image.__setitem__((8, 8), np.nan), "NaN or infinite"),
        (lambda image: image.__setitem__((0, 0), np.inf), "NaN or infinite"),
        (lambda image: image.__setitem__((3, 3), -np.inf), "NaN or infinite"),
        (lambda image: image.fill(0.1), "constant: every pixel is 0.1"),
        (lambda image: image.fill(0.0), "constant: every pixel is 0"),
        (lambda image: image.__imul__(np.float32(1e30)), "too large"),
    ],
)
def test_a_bad_image_is_named_and_the_others_are_not_touched_by_it(
    denoiser: Denoiser, spoil: object, expected: str
) -> None:
    images = noise(4, 16, 16)
    good = denoiser(images)
    spoil(images[2])  # type: ignore[operator]
    with pytest.raises(ImageError, match=f"image 3: .*{expected}"):
        denoiser(images)
    denoised, problems, _ = denoiser.denoise(images)
    assert list(problems) == [2]
    np.testing.assert_array_equal(denoised[2], images[2])
    np.testing.assert_array_equal(denoised[[0, 1, 3]], good[[0, 1, 3]])


@pytest.mark.parametrize("options", [{}, {"blend": 0.5}, {"keep_above_px": 4.0}])
def test_dark_protein_is_denoised_as_the_negative_of_white(
    denoiser: Denoiser, options: dict[str, float]
) -> None:
    images = noise(2, 16, 18)
    dark, *_ = denoiser.denoise(images, protein_dark=True, **options)
    white, *_ = denoiser.denoise(-images, **options)
    np.testing.assert_array_equal(dark, -white)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_a_constant_image_is_told_by_its_own_value_whatever_the_shade(
    denoiser: Denoiser, value: float
) -> None:
    images = np.full((1, 16, 16), value, dtype=np.float32)
    _, problems, _ = denoiser.denoise(images, protein_dark=True)
    assert problems == {0: f"the image is constant: every pixel is {value:g}."}


def test_a_constant_background_is_told_from_a_constant_image(denoiser: Denoiser) -> None:
    images = np.full((1, 16, 16), 0.1, dtype=np.float32)
    images[0, 7:10, 7:10] = 5.0
    with pytest.raises(ImageError, match="constant outside the particle's circle"):
        denoiser(images)


def test_a_spread_that_is_lost_beside_the_mean_is_told_from_none(denoiser: Denoiser) -> None:
    images = np.random.default_rng(1).normal(2e6, 1.0, (1, 16, 16)).astype(np.float32)
    with pytest.raises(ImageError, match=r"single precision: .* Subtract the mean"):
        denoiser(images)


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        (1e-12, None),
        (1e12, None),
        (1e-25, "differ too little"),
        (1e-35, "differ too little"),
        (1e25, "too large"),
    ],
)
def test_values_that_single_precision_cannot_hold_are_told_as_such(
    denoiser: Denoiser, scale: float, problem: str | None
) -> None:
    images = (noise(2, 32, 32) - 100) * np.float32(scale)
    _, problems, _ = denoiser.denoise(images)
    assert list(problems) == ([] if problem is None else [0, 1])
    assert all(problem is not None and problem in text for text in problems.values())


def test_too_little_gpu_memory_halves_the_batch(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(7, 16, 16)
    denoiser = Denoiser(model.module)
    expected = denoiser(images)
    network, sizes = denoiser._network, []

    def small_memory(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("too small")
        result: torch.Tensor = network(batch)
        return result

    monkeypatch.setattr(denoiser, "_network", small_memory)
    np.testing.assert_allclose(denoiser(images), expected, atol=1e-3)
    assert max(size for size in sizes if size <= 2) == 2
    assert sum(size for size in sizes if size <= 2) == 7


def particles(n: int = 8, box_px: int = 96) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Random blobs in white noise of sd 1, and without it."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:box_px, :box_px] - box_px // 2
    clean = [
        sum(0.6 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / 72) for a, b in rng.uniform(-16, 16, (8, 2)))
        for _ in range(n)
    ]
    return (clean + rng.standard_normal((n, box_px, box_px))).astype(np.float32), np.array(clean, np.float32)


def agreement(images: NDArray[np.float32], clean: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    return float(np.mean([np.corrcoef(a[where], b[where])[0, 1] for a, b in zip(images, clean, strict=True)]))


@pytest.mark.parametrize(
    "mask",
    [
        "the corners",
        "a circle of 36 px",
        "a soft circle of 40 px",
        "a strip",
        "a mean-filled frame",
        "repeated rows",
    ],
)
def test_masked_particles_are_denoised_as_well_as_whole_ones(mask: str) -> None:
    raw, clean = particles()
    y, x = np.mgrid[:96, :96] - 48
    radius = np.hypot(y, x)
    edge = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius - 40) / 6, 0, 1))
    masked = {
        "the corners": raw * (radius < 47),
        "a circle of 36 px": raw * (radius < 36),
        "a soft circle of 40 px": raw * edge,
        "a strip": np.where(x < -36, 0, raw),
        "a mean-filled frame": np.where(
            np.maximum(abs(x), abs(y)) > 38, raw.mean((1, 2), keepdims=True), raw
        ),
        "repeated rows": np.where(y < -36, raw[:, 12:13], raw),
    }[mask].astype(np.float32)
    trained = Denoiser(load_model("general").module)
    denoised, problems, remarks = trained.denoise(masked)
    assert not problems
    assert sorted(remarks) == list(range(8))
    assert all("no noise" in remark for remark in remarks.values())
    changed = (masked != raw).all(0)
    filled = changed & ((edge < 0.3) if "soft" in mask else True)
    np.testing.assert_array_equal(denoised[:, filled], masked[:, filled])
    inside = ~changed & (radius < 34)
    whole = agreement(trained(raw), clean, inside)
    # zeros alone take .95 to .6
    assert agreement(denoised, clean, inside) > whole - 0.01


def test_outlying_pixels_of_a_particle_change_nothing_around_them() -> None:
    raw, clean = particles()
    hot = raw.copy()
    hot[0, 48, 48], hot[1, :, 30], hot[2, 50:54, 20:25], hot[3, 0, 0] = 12.0, 50.0, 1e5, -300.0
    trained = Denoiser(load_model("general").module)
    denoised, _, remarks = trained.denoise(hot)
    assert sorted(remarks) == [0, 1, 2, 3]
    changed = hot != raw
    expected = trained(raw)
    for got, want, truth, input_, there in zip(denoised, expected, clean, hot, ~changed, strict=True):
        # as bright or dark as the rest gets: more would leave the rest a single grey
        outlying = input_[~there]
        assert all(got[~there] == np.where(outlying > 0, got[there].max(), got[there].min()))
        assert agreement(got[None], truth[None], there) > agreement(want[None], truth[None], there) - 0.01


def test_a_masked_image_is_denoised_alike_in_any_batch(denoiser: Denoiser) -> None:
    images = noise(4, 32, 32)
    images[:, :10] = 0.0
    together = denoiser(images)
    # but for the last bits of the network, which depend on the batch's size
    np.testing.assert_allclose(together[2:3], denoiser(images[2:3]), rtol=2e-6)


def test_an_image_of_which_hardly_anything_is_left_is_a_problem(denoiser: Denoiser) -> None:
    images = noise(2, 64, 64)
    images[1, 8:] = 0.0
    _, problems, remarks = denoiser.denoise(images)
    assert problems == {1: "only 12 % of it has noise: too little to measure."}
    assert not remarks


@pytest.mark.parametrize("with_context", [False, True])
def test_coarse_pixels_are_denoised_with_and_without_context(with_context: bool) -> None:
    """The network sees them on a grid twice as fine; without context there is nothing beside the image."""
    images = noise(3, 32, 32)
    context = (lambda shown: shown.new_zeros(len(shown), 5, 32, 32)) if with_context else None
    denoised, problems, _ = Denoiser(load_model("general").module).denoise(images, finer=2, context=context)
    assert not problems
    assert denoised.shape == images.shape
    assert 0 < denoised.std() < 0.5 * images.std()


def test_shares_stay_what_they_are_on_a_finer_grid() -> None:
    """Estimates get smaller on a finer grid, as the image does there; shares are numbers from 0 to 1."""
    seen: list[torch.Tensor] = []

    class Watching(DenoisingNetwork):
        stride = 1
        receptive_field_px = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x[:, :1]

    channels = torch.tensor([1.0, 1.0, 0.4, 0.7])
    Denoiser(Watching()).denoise(
        noise(3, 32, 32), finer=2, context=lambda shown: channels[:, None, None].expand(len(shown), 4, 32, 32)
    )
    found = torch.cat(seen)[:, 1:].amax((0, 2, 3))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.4, 0.7]))


@pytest.mark.parametrize("finer", [1, 2, 3])
def test_expected_errors_are_on_the_scale_of_the_images_on_any_grid(finer: int) -> None:
    """On a finer grid an image is weaker by that factor, and so is what the network says of its error."""

    class Telling(DenoisingNetwork):
        stride = 1
        receptive_field_px = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1]

        def with_error(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[:, :1], torch.full_like(x[:, :1], -3.0)

    images = np.random.default_rng(0).normal(100.0, 7.0, (3, 64, 64)).astype(np.float32)
    error = Denoiser(Telling()).error(images, finer=finer)
    # the background has an sd of 7, within what 2,000 pixels tell of it
    np.testing.assert_allclose(error, finer * 7.0 * np.exp(-1.5), rtol=0.1)
