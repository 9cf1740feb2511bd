import numpy as np
import pytest
import torch
from torch import nn

from cryohush.core.errors import ModelError
from cryohush.core.imaging.noise import measure_spectrum
from cryohush.core.models import MODELS
from cryohush.core.models.synthesis import (
    NOISE_MODELS,
    FieldGenerator,
    GaussianField,
    NoiseCritic,
    NoiseGenerator,
    standardised,
)
from cryohush.core.models.weights import save_model
from cryohush.core.noise.synthesis import load_noise_model


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side_px", [64, 128, 320])
def test_generator_and_critic_have_six_layers_at_every_size(side_px):
    generator, critic = NoiseGenerator(side_px, width=2), NoiseCritic(side_px, width=2)
    made = generator(torch.randn(2, 100, generator=draws()))
    assert made.shape == (2, 1, side_px, side_px)
    assert critic(made).shape == (2,)
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in generator.modules()) == 6
    assert sum(isinstance(layer, nn.Conv2d) for layer in critic.modules()) == 6
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in critic.modules())


def test_side_has_to_be_a_multiple_of_32():
    for network in (NoiseGenerator, NoiseCritic):
        with pytest.raises(ValueError, match="multiple of 32 px a side, not 100"):
            network(100, width=2)


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_draws_are_standardised_and_follow_from_the_seed(name):
    model = NOISE_MODELS[name](64, **({} if name == "gaussian_field" else {"width": 2})).eval()
    pieces = model.draw(3, draws(5))
    assert pieces.shape == (3, 64, 64)
    # before training the generator's images are faint on a constant, which rounding keeps a trace of
    torch.testing.assert_close(pieces.mean((1, 2)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(pieces.std((1, 2), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert torch.equal(pieces, model.draw(3, draws(5)))
    assert not torch.equal(pieces, model.draw(3, draws(6)))


def test_opposite_edges_of_a_field_are_strangers():
    """Of a field that is periodic in the piece, the first and the last row would be neighbours."""
    field = GaussianField(64)
    field.power.copy_(torch.exp(-((field.frequency / 0.05) ** 2)))
    pieces = field.draw(64, draws())
    beside = float((pieces[:, 0] * pieces[:, 1]).mean())
    across = float((pieces[:, 0] * pieces[:, -1]).mean())
    assert beside > 0.8
    assert abs(across) < 0.2  # few independent values in 64 rows of a narrow spectrum


def test_field_measured_in_small_pieces_is_drawn_in_large_ones():
    """The same power at the same frequency, in cycles per pixel."""
    small, large = GaussianField(32), GaussianField(96, measured_px=32)
    for field in (small, large):
        field.power.copy_(1 / (0.01 + field.frequency**2))
    drawn = large.draw(48, draws())
    assert drawn.shape == (48, 96, 96)
    parts = drawn.unfold(1, 32, 32).unfold(2, 32, 32).flatten(0, 2)
    powers = [measure_spectrum(images).power for images in (parts, small.draw(432, draws(1)))]
    # standardising takes the share of the large waves off the small pieces: a constant factor
    decibels = 10 * np.log10(powers[0] / powers[1])
    assert decibels[1:].std() < 0.3


def test_values_of_a_field_are_mapped_one_by_one():
    """A table of x^3 makes the cube of a Gaussian field, whose fourth moment is E x^12 / (E x^6)^2."""
    field = GaussianField(64)
    field.values.copy_(field.deviates() ** 3)
    pieces = field.draw(64, draws())
    # 10395 / 225 for normal deviates; the far tails of 2.6e5 pixels decide, and each piece is standardised
    assert 20 < float(pieces.pow(4).mean()) < 60
    assert float(pieces.pow(3).mean()) == pytest.approx(0, abs=0.7)


def test_untrained_generator_from_a_field_draws_the_field():
    generator = FieldGenerator(64, width=2)
    generator.field.power.copy_(torch.exp(-((generator.field.frequency / 0.1) ** 2)))
    inputs = generator.inputs(4, draws())
    middle = slice(9, -9)  # the reach of the convolutions
    torch.testing.assert_close(generator(inputs), standardised(inputs[:, :1, middle, middle]))


def test_generator_from_a_field_is_alike_all_over():
    """Inputs moved by some pixels give the piece moved, its borders included: nothing is padded."""
    generator = FieldGenerator(64, width=2)
    torch.nn.init.normal_(generator.layers[-1].weight)
    inputs = torch.randn(1, 3, 90, 90, generator=draws())
    large = generator.layers(inputs)
    torch.testing.assert_close(generator.layers(inputs[..., 5:, 3:]), large[..., 5:, 3:])


def test_constant_image_is_standardised_to_zero():
    assert bool((standardised(torch.full((2, 8, 8), 3.0)) == 0).all())


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_model_of_noise_comes_back_from_its_file(tmp_path, name):
    arguments = {"side_px": 64, **({} if name == "gaussian_field" else {"width": 2})}
    model = NOISE_MODELS[name](**arguments).eval()
    save_model(tmp_path / "noise.safetensors", model, name, arguments, {})
    again = load_noise_model(tmp_path / "noise.safetensors")
    assert torch.equal(again.draw(2, draws()), model.draw(2, draws()))


def test_denoiser_is_no_model_of_noise(tmp_path):
    arguments = {"width": 4, "depth": 3}
    save_model(tmp_path / "net.safetensors", MODELS["dncnn"](**arguments), "dncnn", arguments, {})
    with pytest.raises(ModelError):
        load_noise_model(tmp_path / "net.safetensors")
