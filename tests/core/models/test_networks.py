import hashlib
import math

import pytest
import torch

from cryohush.core.errors import ModelError
from cryohush.core.models import CRITICS, MODELS, vgg
from cryohush.core.models.diffusion import DiffusionDenoiser, add_noise, noise_levels, sample
from cryohush.core.models.progressive import ProgressiveAutoencoder, ProgressiveCritic
from cryohush.core.models.vgg import Vgg19Features, download_vgg19, load_vgg19
from cryohush.core.models.weights import load_model, save_model

SMALL = {
    "shuffle_unet": {"widths": (8, 8), "blocks": (1, 1), "unshuffle": 2},
    "context_average": {"widths": (8, 8), "blocks": (1, 1), "unshuffle": 2},
    "dncnn": {"width": 4, "depth": 5},
    "resnet_autoencoder": {"width": 4, "downs": 2, "blocks": 1},
    "convolutional_generator": {"width": 4, "downs": 1, "blocks": 1},
    "residual_pix2pix": {"width": 4, "downs": 2},
    "skip_resnet": {"width": 4, "residuals": 1, "downs": 2},
    "pooling_unet": {"width": 3},
    "progressive_autoencoder": {"widths": (4, 4), "bottom": 1},
    "diffusion": {"predictor": {"widths": (8, 8), "blocks": (1, 1)}, "steps": 2, "draws": 1},
}


@pytest.fixture(params=MODELS)
def network(request):
    """Every network of the registry, small, with weights at which each of its paths does something."""
    torch.manual_seed(0)
    module = MODELS[request.param](**SMALL[request.param])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return request.param, module.eval()


@torch.inference_mode()
def test_image_keeps_its_shape(network):
    _, module = network
    shape = (2, 1, 3 * module.stride, 5 * module.stride)
    assert module(torch.randn(shape)).shape == shape


def test_no_pixel_beyond_the_receptive_field_matters(network):
    _, module = network
    reach = module.receptive_field_px
    side = module.stride * math.ceil((2 * reach + 8) / module.stride)
    x = torch.randn(1, 1, side, side, requires_grad=True, dtype=torch.float32)
    middle = side // 2
    (gradient,) = torch.autograd.grad(module(x)[0, 0, middle, middle], x)
    rows = gradient[0, 0].abs().sum(1).nonzero().squeeze(1)
    assert len(rows) > 1
    assert middle - rows.min() <= reach
    assert rows.max() - middle <= reach


@torch.inference_mode()
def test_image_does_not_depend_on_its_batch(network):
    _, module = network
    x = torch.randn(3, 1, 2 * module.stride, 2 * module.stride)
    # convolutions of other batch sizes may add in another order
    torch.testing.assert_close(module(x)[:1], module(x[:1]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_weights_file_brings_the_network_back(network, tmp_path):
    name, module = network
    save_model(tmp_path / "weights.safetensors", module, name, SMALL[name], {"description": "small"})
    loaded = load_model(tmp_path / "weights.safetensors").module
    x = torch.randn(1, 1, 2 * module.stride, 2 * module.stride)
    torch.testing.assert_close(loaded(x), module(x))


@pytest.mark.parametrize("name", CRITICS)
@torch.inference_mode()
def test_critic_scores_pairs_of_any_size(name):
    critic = CRITICS[name](channels=2).eval()
    for side in (64, 96):
        assert critic(torch.randn(3, 2, side, side)).shape[0] == 3


@torch.inference_mode()
def test_a_young_stage_leaves_the_image_as_the_stage_before_made_it():
    torch.manual_seed(1)
    for module in (ProgressiveAutoencoder(widths=(4, 8, 8), bottom=1), ProgressiveCritic(widths=(4, 8, 8))):
        fine = torch.randn(2, 1, 64, 64)
        coarse = torch.nn.functional.avg_pool2d(fine, 2)
        module.stage.fill_(1)
        before = module(coarse)
        module.stage.fill_(2)
        module.share.fill_(0.0)
        after = module(fine)
        if after.ndim == 4:
            after = torch.nn.functional.avg_pool2d(after, 2)
        torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("network", "published"),
    [
        # Gu et al.: of the authors' program
        (lambda: MODELS["skip_resnet"](bounded=True), 4_195_843),
        (lambda: CRITICS["skip_resnet"](), 2_803_393),
        # Zhang et al. (2017), grey images of unknown noise level with 17 layers: 64 * 9 + 64, fifteen of
        # 64 * 64 * 9 + 128, 64 * 9 + 1
        (lambda: MODELS["dncnn"](), 64 * 9 + 64 + 15 * (64 * 64 * 9 + 128) + 64 * 9 + 1),
    ],
    ids=["robust GAN", "its critic", "DnCNN"],
)
def test_networks_of_the_papers_have_their_parameters(network, published):
    assert sum(parameter.numel() for parameter in network().parameters()) == published


def test_the_robust_gans_critic_gives_a_map_of_scores():
    # 128 px halved three times are 16, of which a 4x4 filter leaves 13
    with torch.inference_mode():
        scores = CRITICS["skip_resnet"](width=2).eval()(torch.randn(2, 1, 128, 128))
    assert scores.shape == (2, 13 * 13)


def test_nt2c_pools_five_times_and_enlarges_five_times(monkeypatch):
    sizes = {"pooled": [], "enlarged": []}
    functional = torch.nn.functional
    pool, enlarge = functional.max_pool2d, functional.interpolate

    def pooled(x, side):
        sizes["pooled"].append(x.shape[-1])
        return pool(x, side)

    def enlarged(x, **options):
        assert options["mode"] == "nearest"
        sizes["enlarged"].append(x.shape[-1])
        return enlarge(x, **options)

    monkeypatch.setattr(functional, "max_pool2d", pooled)
    monkeypatch.setattr(functional, "interpolate", enlarged)
    MODELS["pooling_unet"](width=2)(torch.randn(1, 1, 64, 64))
    assert sizes == {"pooled": [64, 32, 16, 8, 4], "enlarged": [2, 4, 8, 16, 32]}


def test_a_random_input_is_drawn_for_each_training_image_and_fixed_afterwards():
    torch.manual_seed(2)
    network = MODELS["convolutional_generator"](width=4, downs=1, blocks=1, random_input=True)
    twice = torch.randn(1, 1, 16, 16).expand(2, 1, 16, 16)
    with torch.inference_mode():
        first, second = network.train()(twice)
        assert float((first - second).abs().max()) > 1e-3
        assert not torch.equal(network(twice)[0], first)
        first, second = network.eval()(twice)
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(network(twice)[0], first)


def test_noise_levels_fall_from_one_to_nearly_nothing():
    levels = noise_levels(50)
    assert levels[0] == 1
    assert (levels[1:] < levels[:-1]).all()
    assert levels[-1] < 1e-3


def test_noised_image_has_the_variance_of_its_parts():
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 1, 1, 400, 400, generator=generator).unbind()
    noised = add_noise(2 * clean, torch.tensor([0.3]), noise)
    # 160,000 pixels: a relative error of 0.4 %
    assert float(noised.var()) == pytest.approx(0.3 * 4 + 0.7, rel=0.02)


class _GaussianPosterior(torch.nn.Module):
    """The exact predictor of v where clean pixels are N(0, 1) and the observation is clean + N(0, s²)."""

    def __init__(self, noise_variance: float) -> None:
        super().__init__()
        self.noise_variance = noise_variance

    def forward(self, noised, observation, level):
        level = level[:, None, None, None]
        # posterior of the clean pixel given both: precision-weighted mean
        precision = 1 + 1 / self.noise_variance + level / (1 - level)
        mean = (observation / self.noise_variance + level.sqrt() * noised / (1 - level)) / precision
        noise = (noised - level.sqrt() * mean) / (1 - level).sqrt()
        return level.sqrt() * noise - (1 - level).sqrt() * mean


@pytest.mark.parametrize("deterministic", [True, False])
def test_draws_have_mean_and_spread_of_the_posterior(deterministic):
    variance = 0.5
    generator = torch.Generator().manual_seed(4)
    observation = torch.full((1, 1, 128, 128), 0.9)
    draw = sample(
        _GaussianPosterior(variance),
        observation,
        steps=200,
        deterministic=deterministic,
        generator=generator,
    )
    # 16,384 independent pixels: standard errors of 0.005 and 0.003; 200 steps leave about 1 %
    assert float(draw.mean()) == pytest.approx(0.9 / (1 + variance), abs=0.02)
    assert float(draw.var()) == pytest.approx(variance / (1 + variance), rel=0.06)


def test_mean_of_draws_is_their_average():
    torch.manual_seed(5)
    one = DiffusionDenoiser(**{**SMALL["diffusion"], "draws": 3}).eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(one(x), (one.draw(x, 0) + one.draw(x, 1) + one.draw(x, 2)) / 3)


def test_vgg_has_the_layers_of_the_paper(tmp_path):
    network = Vgg19Features(depth=37)
    convolutions = [layer for layer in network.features if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 16
    # published number of parameters of the convolutional part of VGG-19
    assert sum(p.numel() for p in network.parameters()) == 20_024_384


def test_vgg_weights_load_from_a_state_dict_with_a_classifier(tmp_path):
    state = {**Vgg19Features(9).state_dict(), "classifier.0.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "vgg19.pth")
    network = load_vgg19(tmp_path / "vgg19.pth", depth=9)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    with pytest.raises(ModelError, match="ImageNet weights of VGG-19"):
        load_vgg19(tmp_path / "vgg19.pth", depth=36)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A file that stands for the official weights, at an address of its own, and torch's empty cache."""
    source = tmp_path / "server" / "vgg19-weights.pth"
    source.parent.mkdir()
    source.write_bytes(b"the official weights")
    monkeypatch.setattr(vgg, "_WEIGHTS_URL", source.as_uri())
    monkeypatch.setattr(vgg, "_HASH_BEGINS", hashlib.sha256(source.read_bytes()).hexdigest()[:8])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    return source


def test_vgg_weights_are_fetched_once(official):
    path = download_vgg19()
    assert path.read_bytes() == b"the official weights"
    official.unlink()
    assert download_vgg19() == path


def test_vgg_weights_with_another_hash_are_not_kept(official):
    official.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"invalid hash value.* give the path of the file"):
        download_vgg19()
    assert list(official.parents[1].glob("cache/**/*.pth")) == []


def test_vgg_weights_out_of_reach_are_asked_for(official):
    official.unlink()
    with pytest.raises(ModelError, match="Fetch it where there is a network"):
        download_vgg19()
