import pytest
import torch
from torch.overrides import TorchFunctionMode

from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.normalise import background_statistics
from cryohush.core.simulation.image_formation import (
    ImagingRanges,
    ProjectionBank,
    _shift_without_wrap,
    simulate_pairs,
)

BOX = 64


@pytest.fixture
def bank() -> ProjectionBank:
    """Two volumes of eight images each: discs of different size, unit variance."""
    y, x = torch.meshgrid(*[torch.arange(BOX) - BOX // 2] * 2, indexing="ij")
    images = torch.stack([((y**2 + x**2) < radius**2).float() for radius in [8] * 8 + [12] * 8])
    images /= images.std(dim=(1, 2), keepdim=True)
    diameter = torch.tensor([16.0] * 8 + [24.0] * 8)
    return ProjectionBank(images.half(), torch.full((16,), 2.0), diameter, torch.arange(16) // 8)


@pytest.fixture
def optics() -> CtfParameters:
    values = (2e4, 1.9e4, 20.0, 300.0, 2.7, 0.1, 0.0)
    return CtfParameters(*(torch.full((3,), value) for value in values))


def draw(bank, optics, seed=0, size=64, **ranges):
    return simulate_pairs(bank, optics, ImagingRanges(**ranges), size, torch.Generator().manual_seed(seed))


def test_same_seed_gives_the_same_pairs(bank, optics):
    for one, other in zip(draw(bank, optics), draw(bank, optics), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(draw(bank, optics)[0], draw(bank, optics, seed=1)[0])


def test_snr_is_the_ratio_of_the_variances(bank, optics):
    noisy, clean, snr = draw(
        bank, optics, snr=(0.05, 0.2), empty_probability=0.0, background_share=0.0, ice_share=0.0
    )
    ratio = clean.var(dim=(1, 2, 3)) / (noisy - clean).var(dim=(1, 2, 3))
    torch.testing.assert_close(ratio, snr, rtol=1e-3, atol=0)  # exact but for float32 sums over 4096 pixels


def test_background_of_the_noisy_image_is_normalised(bank, optics):
    noisy, _, _ = draw(bank, optics)
    mean, std = background_statistics(noisy[:, 0], 0.375 * BOX)
    torch.testing.assert_close(mean, torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(64), atol=1e-5, rtol=0)


def test_image_of_noise_alone_has_a_flat_clean_counterpart(bank, optics):
    _, clean, snr = draw(bank, optics, empty_probability=0.99, background_share=0.0, ice_share=0.0)
    assert (snr == 0).sum() > 50
    assert clean[snr == 0].std(dim=(1, 2, 3)).max() < 1e-6


def test_noise_is_independent_of_the_clean_image(bank, optics):
    noisy, clean, _ = draw(bank, optics, size=512, background_share=0.0, empty_probability=0.0)
    noise = noisy - clean
    correlation = (noise * (clean - clean.mean(dim=(1, 2, 3), keepdim=True))).mean() / clean.std()
    # 512 images of 4096 pixels with a correlation length of a few pixels: the standard error is about 0.003
    assert correlation.abs() < 0.015


def test_ice_noise_carries_the_rings_of_the_ctf(bank, optics):
    """Beyond the CTF's first zero the clean image of empty ice rises again, as no smooth spectrum does."""
    _, clean, _ = draw(
        bank, optics, size=256, ice_share=0.999, background_share=0.0,
        no_ctf_probability=0.0, defocus_scale=(1.0, 1.0), empty_probability=1.0,
    )  # fmt: skip
    power = torch.fft.rfft2(clean[:, 0]).abs().square().mean(0)[0]
    # 1.95 µm, 300 kV: pi lambda f² defocus + 0.1 is 2.75 (sin² = 0.15) at 6 / 128 Å, 4.8 (0.99) at 8 / 128 Å
    assert power[8] > 1.3 * power[6]


def test_neighbours_come_from_the_same_volume(bank, optics):
    common = {
        "background_share": 0.0,
        "ice_share": 0.0,
        "snr": (0.3, 0.5),
        "empty_probability": 0.0,
        "no_ctf_probability": 1.0,
        "envelope_b_factor": 0.0,
    }
    _, alone, _ = draw(bank, optics, neighbour_probability=0.0, **common)
    _, crowded, _ = draw(bank, optics, neighbour_probability=1.0, **common)
    # discs on a flat ground: the share of bright pixels grows with neighbours
    share = [(image > image.mean(dim=(2, 3), keepdim=True)).float().mean() for image in (alone, crowded)]
    assert share[1] > 1.3 * share[0]


def test_scattered_particles_leave_the_centre_empty_as_often_as_any_other_place(bank, optics):
    no_noise_but_particles = {"ice_share": 0.0, "background_share": 0.0, "empty_probability": 0.0}
    _, clean, _ = draw(bank, optics, size=512, **no_noise_but_particles, scattered_probability=1.0)
    power = clean.square().mean(dim=(0, 1))
    box = power.shape[-1]
    centre = slice(3 * box // 8, 5 * box // 8)
    # centred particles would give ten times as much; the rim sees fewer, whose centres lie beyond it
    ratio = float(power[centre, centre].mean() / power[: box // 4, : box // 4].mean())
    assert 0.7 < ratio < 1.8


def test_shift_moves_right_and_down_and_does_not_wrap():
    image = torch.zeros(1, 8, 8)
    image[0, 2, 3] = 1
    image[0, 7, 7] = 5
    shifted = _shift_without_wrap(image, torch.tensor([[1, 2]]))
    assert shifted.nonzero().tolist() == [[0, 3, 5]]


def test_other_box_changes_the_pixel_size_with_it(bank, optics):
    noisy, clean, snr = simulate_pairs(
        bank, optics, ImagingRanges(), 16, torch.Generator().manual_seed(0), box_px=96
    )
    assert noisy.shape == clean.shape == (16, 1, 96, 96)
    assert snr.shape == (16,)


def test_particle_alone_without_optics_is_a_projection_in_white_noise(bank, optics):
    """What the published methods are trained on: nothing but the projection is scaled, and every power of
    the noise is alike."""
    nothing = dict.fromkeys(
        ("shift_share", "envelope_b_factor", "ice_share", "noise_tilt", "background_share"), 0.0
    )
    noisy, clean, _ = draw(
        bank, optics, no_ctf_probability=1.0, neighbour_probability=0.0, empty_probability=0.0, **nothing
    )
    flat = clean[:, 0] - clean[:, 0].mean(dim=(1, 2), keepdim=True)
    # turned and mirrored, a disc about pixel BOX // 2 stays within a pixel of where it was
    turned = [torch.rot90(bank.images[[0, 8]].float(), turn, (1, 2)) for turn in range(4)]
    wanted = torch.cat([*turned, *(images.flip(-1) for images in turned)]).flatten(1)
    wanted = torch.nn.functional.normalize(wanted - wanted.mean(1, keepdim=True))
    likeness = torch.nn.functional.normalize(flat.flatten(1)) @ wanted.T
    assert likeness.amax(1).min() > 0.9999  # half precision of the bank
    power = torch.fft.rfft2(noisy - clean, norm="ortho").abs().square().mean((0, 1))
    low, high = power[1:9, 1:9].mean(), power[24:32, 24:32].mean()
    assert abs(low / high - 1) < 0.09  # of 4,096 exponential variables each, four standard deviations


FACTORIES = (
    *("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros"),
    *("fft_fftfreq", "fft_rfftfreq"),
)


class MadeAnywhere(TorchFunctionMode):
    """Names the functions that made a tensor without being told where."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.__name__ in FACTORIES and kwargs.get("device") is None:
            self.names.append(function.__name__)
        return function(*args, **kwargs)


@pytest.mark.parametrize("scattered_probability", [0.0, 0.5])
@pytest.mark.parametrize("blocks", [None, torch.randn(3, 80, 80, generator=torch.Generator().manual_seed(3))])
def test_all_is_made_on_the_device_of_the_generator(bank, optics, scattered_probability, blocks):
    ranges = ImagingRanges(scattered_probability=scattered_probability)
    with MadeAnywhere() as made:
        simulate_pairs(bank, optics, ranges, 8, torch.Generator().manual_seed(1), 48, blocks)
    assert made.names == []
    with MadeAnywhere() as made:
        torch.fft.fftfreq(4)
        torch.rand(3)
    assert made.names == ["fft_fftfreq", "rand"]
