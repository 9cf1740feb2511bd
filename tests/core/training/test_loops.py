import json
import math
from pathlib import Path

import pytest
import torch

from cryohush.core.config.load import validate
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import Aborted, ConfigurationError
from cryohush.core.job_context import JobContext
from cryohush.core.losses import perceptual
from cryohush.core.losses.perceptual import PerceptualLoss
from cryohush.core.models.vgg import Vgg19Features
from cryohush.core.models.weights import load_model, save_model
from cryohush.core.training import adversarial, diffusion
from cryohush.core.training.run import train

RESNET = {"name": "resnet_autoencoder", "arguments": {"width": 4, "downs": 2, "blocks": 1}}
CRITIC = {"name": "resnet", "arguments": {"width": 4, "downs": 2}}
PROGRESSIVE = {"widths": [8, 8], "bottom": 1}
GAMES = {
    "alpha_beta": {"critic": CRITIC, "alpha": 0.5, "beta": 0.5, "critic_steps": 1, "generator_steps": 2},
    "wasserstein": {
        "critic": CRITIC,
        "score": "wasserstein",
        "gradient_penalty": 10.0,
        "critic_steps": 2,
        "weight": 0.1,
    },
    "clipped": {
        "critic": {"name": "convolutional", "arguments": {"width": 4}},
        "paired": True,
        "score": "wasserstein",
        "weight_limit": 0.001,
        "critic_optimiser": "sgd",
    },
    "progressive": {"critic": {"name": "progressive", "arguments": PROGRESSIVE}},
}


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def game(tiny, name, steps=12):
    network = RESNET
    if name == "progressive":
        network = {"name": "progressive_autoencoder", "arguments": PROGRESSIVE}
    options = {**tiny["optimisation"], "steps": steps, "ema_decay": 0.9, "learning_rate": 5e-3}
    changes = {"network": network, "adversarial": GAMES[name], "loss": {"pixel": {"l1": 10.0}}}
    return TrainingConfig.model_validate({**tiny, **changes, "optimisation": options})


def diffuse(tiny, steps=12, post_steps=4):
    small = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}
    arguments = {"predictor": small, "post": small, "steps": 2, "draws": 1}
    changes = {
        "network": {"name": "diffusion", "arguments": arguments},
        "diffusion": {"post_steps": post_steps},
        "optimisation": {**tiny["optimisation"], "steps": steps, "ema_decay": 0.9, "learning_rate": 5e-3},
    }
    return TrainingConfig.model_validate({**tiny, **changes})


def assert_same_weights(one, other):
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", GAMES)
def test_killed_game_resumes_to_the_same_weights(tiny, tmp_path, name):
    config = game(tiny, name)
    undisturbed = load_model(train(config, tmp_path / "a")).module
    calls = iter(range(100))
    with pytest.raises(Aborted, match="step 7"):
        train(config, tmp_path / "b", context=JobContext(should_stop=lambda: next(calls) == 7))
    resumed = load_model(train(config, tmp_path / "b", resume=True)).module
    assert_same_weights(undisturbed, resumed)
    assert [line["step"] for line in read_log(tmp_path / "b")] == [4, 8, 12]


def test_game_with_a_pixel_loss_learns_to_denoise(tiny, tmp_path):
    config = game({**tiny, "validate_every": 30}, "alpha_beta", steps=60)
    train(config, tmp_path / "run")
    lines = read_log(tmp_path / "run")
    assert lines[-1]["score"] < 0.95 * lines[0]["score"]
    assert lines[-1]["score"] < 0.6  # a flat image scores 1


def test_critic_tells_noise_from_clean_images(tiny, tmp_path):
    """With a network that hardly moves, the critic's loss falls below that of not knowing, 2 ln 2."""
    config = game({**tiny, "validate_every": 30}, "alpha_beta", steps=60)
    changes = {"alpha": 0.0, "beta": 0.0, "critic_learning_rate": 2e-3, "generator_steps": 1}
    config = config.model_copy(update={"adversarial": config.adversarial.model_copy(update=changes)})
    options = config.optimisation.model_copy(update={"learning_rate": 1e-7})
    train(config.model_copy(update={"optimisation": options}), tmp_path / "run")
    assert read_log(tmp_path / "run")[-1]["critic"] < 0.8 * 1.386


def test_weights_of_a_clipped_critic_stay_within_the_limit(tiny, tmp_path):
    train(game(tiny, "clipped"), tmp_path / "run")
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    trained = [value for name, value in state["critic"].items() if name.endswith(("weight", "bias"))]
    assert max(float(value.abs().max()) for value in trained) <= 0.001 * (1 + 1e-6)


def test_each_stage_has_twice_the_steps_of_the_one_before_and_fades_in():
    assert [adversarial.progress(step, 70, 3) for step in (0, 9, 10, 15, 20, 29, 30, 40, 50, 69)] == [
        (0, 1.0),
        (0, 1.0),
        (1, 0.0),
        (1, 0.5),
        (1, 1.0),
        (1, 1.0),
        (2, 0.0),
        (2, 0.5),
        (2, 1.0),
        (2, 1.0),
    ]


def test_validation_judges_the_stage_that_is_trained(tiny, tmp_path):
    """The first of two stages is shown images of half the side; the last one whole ones."""
    sides = []
    judge = adversarial.validate

    def watched(network, data, n_images):
        scores, preview = judge(network, data, n_images)
        denoised, clean = (row.images for row in preview.rows if row.label != "noisy")
        sides.append((int(network.stage), denoised.shape[-1], clean.shape[-1]))
        return scores, preview

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "validate", watched)
        train(game(tiny, "progressive"), tmp_path / "run")
    full = tiny["data"]["box_px"]
    # validated after steps 4, 8 and 12; the second stage begins with step 4
    assert sides == [(0, full // 2, full // 2), (1, full, full), (1, full, full)]


def test_unsupervised_game_never_compares_with_the_clean_image(tiny, tmp_path):
    """Its pixel loss is to the noisy image: with nothing else, the output keeps the noisy block means."""
    config = game({**tiny, "validate_every": 10}, "alpha_beta", steps=40)
    changes = {"unpaired_clean": True, "weight": 1e-9}
    loss = config.loss.model_copy(update={"pixel": {"coarse_l1": 10.0}})
    config = config.model_copy(
        update={"adversarial": config.adversarial.model_copy(update=changes), "loss": loss}
    )
    train(config, tmp_path / "run")
    lines = read_log(tmp_path / "run")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_killed_diffusion_resumes_to_the_same_weights(tiny, tmp_path):
    config = diffuse(tiny)
    undisturbed = load_model(train(config, tmp_path / "a")).module
    calls = iter(range(100))
    with pytest.raises(Aborted, match="step 9"):  # in the second stage
        train(config, tmp_path / "b", context=JobContext(should_stop=lambda: next(calls) == 9))
    resumed = load_model(train(config, tmp_path / "b", resume=True)).module
    assert_same_weights(undisturbed, resumed)


def test_diffusion_learns_to_denoise(tiny, tmp_path):
    tiny = {**tiny, "validate_every": 40}
    train(diffuse(tiny, steps=120, post_steps=40), tmp_path / "run")
    lines = read_log(tmp_path / "run")
    # the last line is behind the U-Net, the one before it is of the draws alone
    assert lines[-1]["score"] < lines[-2]["score"]
    assert lines[-1]["score"] < 0.7  # a flat image scores 1


def test_drawn_levels_cover_the_schedule():
    levels = diffusion.draw_levels(20000, torch.Generator().manual_seed(0))
    assert float(levels.min()) < 0.01
    assert float(levels.max()) > 0.99
    # the cosine schedule spends half of its steps above g = 1/2
    assert float((levels > 0.5).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": {"noisy": "a.star", "target": "b.star"}}, "exactly one of the sections data, pairs and"),
        ({"data": None}, "exactly one of the sections data, pairs and"),
        ({"diffusion": {}}, "belong together"),
        ({"adversarial": {}, "diffusion": {}}, "exclude each other"),
        ({"adversarial": {"alpha": 2.0}}, "adversarial.alpha: expected less than or equal to 1"),
        ({"loss": {"pixel": {"l3": 1.0}}}, "loss.pixel"),
    ],
)
def test_sections_that_do_not_fit_are_refused(tiny, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        validate({**tiny, **changes}, TrainingConfig, "tiny.yaml")


def test_unknown_network_and_critic_are_refused_by_name(tiny, tmp_path):
    config = TrainingConfig.model_validate({**tiny, "network": {"name": "resnet50"}})
    with pytest.raises(ConfigurationError, match=r"network\.name: expected one of .*dncnn.* not resnet50"):
        train(config, tmp_path / "run")
    config = game(tiny, "alpha_beta")
    critic = config.adversarial.critic.model_copy(update={"name": "judge"})
    config = config.model_copy(
        update={"adversarial": config.adversarial.model_copy(update={"critic": critic})}
    )
    with pytest.raises(ConfigurationError, match=r"critic\.name: expected one of .*resnet.* not judge"):
        train(config, tmp_path / "run")


def test_perceptual_loss_is_zero_for_the_target_and_has_a_gradient(tmp_path):
    loss = PerceptualLoss("general")
    target = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(loss(target, target).abs().max()) == 0
    estimate = (target + 0.1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(estimate, target).sum(), estimate)
    assert float(gradient.abs().max()) > 0


def test_perceptual_loss_needs_an_encoder(tmp_path):
    from cryohush.core.models import MODELS

    network = MODELS["dncnn"](width=4, depth=3)
    save_model(tmp_path / "plain.safetensors", network, "dncnn", {"width": 4, "depth": 3}, {})
    with pytest.raises(ConfigurationError, match="is no shuffle_unet"):
        PerceptualLoss(str(tmp_path / "plain.safetensors"))


def test_both_stages_of_a_diffusion_model_have_a_whole_schedule(tiny, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(diffusion, "set_learning_rate", lambda optimiser, rate: rates.append(rate / 5e-3))
    train(diffuse(tiny, steps=12, post_steps=4), tmp_path / "run")

    def expected(steps):
        return [0.5, 1.0, *(0.5 + 0.5 * math.cos(math.pi * k / (steps - 2)) for k in range(steps - 2))]

    assert rates == pytest.approx([*expected(8), *expected(4)])


def test_vgg_is_downloaded_only_where_it_is_asked_for_by_name(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(perceptual, "load_vgg19", lambda path: taken.append(path) or Vgg19Features(4))
    monkeypatch.setattr(perceptual, "download_vgg19", lambda: tmp_path / "fetched.pth")
    monkeypatch.chdir(tmp_path)
    PerceptualLoss("vgg19")
    PerceptualLoss("vgg19-dcbb9e9d.pth")
    (tmp_path / "vgg19").touch()
    PerceptualLoss("vgg19")
    assert taken == [tmp_path / "fetched.pth", Path("vgg19-dcbb9e9d.pth"), Path("vgg19")]


def test_run_leaves_curves_pictures_and_events(tiny, tmp_path):
    train(TrainingConfig.model_validate(tiny), tmp_path / "run")
    for name in ("curves.png", "validation.png"):
        assert (tmp_path / "run" / name).read_bytes()[1:4] == b"PNG"
    assert list((tmp_path / "run/tensorboard").glob("events*"))


def test_patience_keeps_the_best_weights(tiny, tmp_path):
    options = {**tiny["optimisation"], "steps": 40, "patience": 2, "ema_decay": 0.0, "learning_rate": 0.3}
    lines: list[str] = []
    train(
        TrainingConfig.model_validate({**tiny, "optimisation": options}),
        tmp_path / "run",
        context=JobContext(log=lines.append),
    )
    scores = [line["score"] for line in read_log(tmp_path / "run")]
    best = scores.index(min(scores))
    assert len(scores) == min(best + 3, 10)  # ten validations in 40 steps
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)["best"]
    weights = load_model(tmp_path / "run/weights.safetensors").module.state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(value, state[name].half().float())
