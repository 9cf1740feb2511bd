import json
import math

import pytest
import torch

from cryohush.core.config.load import PRESET_FOLDER, load_yaml
from cryohush.core.config.training import LossConfig, TrainingConfig
from cryohush.core.errors import Aborted, ConfigurationError, CryohushError
from cryohush.core.job_context import JobContext
from cryohush.core.models.weights import load_model
from cryohush.core.training import session, supervised
from cryohush.core.training.adversarial import make_critic
from cryohush.core.training.data import SimulatedParticles, find_structures


def quiet(_: str) -> None:
    pass


def longer(config: TrainingConfig, **changes) -> TrainingConfig:
    return config.model_copy(update={"optimisation": config.optimisation.model_copy(update=changes)})


def test_training_lowers_the_error_on_a_structure_never_seen(config, tmp_path):
    supervised.train(longer(config, steps=120), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 120
    assert records[-1]["score"] < 0.7 * records[0]["score"]
    assert records[-1]["score"] < 1  # what a flat image scores


def test_killed_run_resumes_to_the_same_weights(config, tmp_path):
    undisturbed = load_model(str(supervised.train(config, tmp_path / "a"))).module
    calls = iter(range(100))
    with pytest.raises(Aborted, match="step 6"):
        supervised.train(config, tmp_path / "b", context=JobContext(should_stop=lambda: next(calls) == 6))
    resumed = load_model(str(supervised.train(config, tmp_path / "b", resume=True))).module
    for one, other in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_fine_tuning_starts_from_the_given_weights(config, tmp_path):
    first = supervised.train(config, tmp_path / "first")
    tuned = longer(config, steps=1, learning_rate=1e-9, weight_decay=0.0)
    tuned = tuned.model_copy(update={"initial_weights": first})
    second = load_model(supervised.train(tuned, tmp_path / "second"))
    for one, other in zip(load_model(first).module.parameters(), second.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)  # half precision in the file
    assert second.card["training"]["initial_weights"] == "weights.safetensors"


def test_weights_carry_the_configuration_and_no_folder_of_the_machine(config, tmp_path):
    model = load_model(str(supervised.train(config, tmp_path / "run")))
    assert model.card["training"]["optimisation"]["steps"] == 12
    assert model.card["structures"] == ["one", "two"]
    assert model.card["held_out_structures"] == ["kept"]
    assert str(tmp_path) not in json.dumps(model.card)


def test_checkpoint_of_another_configuration_is_refused(config, tmp_path):
    supervised.train(config, tmp_path / "run")
    with pytest.raises(CryohushError, match="belongs to another configuration"):
        supervised.train(longer(config, steps=20), tmp_path / "run", resume=True)


def test_box_that_the_network_cannot_take_is_refused_at_once(config, tmp_path):
    config = config.model_copy(update={"data": config.data.model_copy(update={"other_boxes_px": (32, 34)})})
    with pytest.raises(ConfigurationError, match="multiples of 4 px for this network, not 34"):
        supervised.train(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("projections*"))


def test_diverged_run_stops_with_its_reason(config, tmp_path):
    with pytest.raises(CryohushError, match="the loss is not finite near step 4"):
        supervised.train(longer(config, learning_rate=1e30, gradient_clip=1e30), tmp_path / "run")


def test_batches_are_a_function_of_seed_and_number(config, tmp_path):
    data = [
        SimulatedParticles(
            config.data, held_out=False, seed=5, cache=tmp_path / f"{i}.safetensors", log=quiet
        )
        for i in range(2)
    ]
    assert torch.equal(data[0].batch(3, 4)[0], data[1].batch(3, 4)[0])
    assert not torch.equal(data[0].batch(3, 4)[0], data[0].batch(4, 4)[0])


def test_projections_are_read_back_from_the_cache(config, tmp_path):
    cache = tmp_path / "bank.safetensors"
    made = SimulatedParticles(config.data, held_out=False, seed=5, cache=cache, log=quiet).batch(0, 4)
    lines: list[str] = []
    read = SimulatedParticles(config.data, held_out=False, seed=5, cache=cache, log=lines.append).batch(0, 4)
    assert lines == []
    for one, other in zip(made, read, strict=True):
        assert torch.equal(one, other)


def test_other_boxes_hold_about_as_many_pixels(config, tmp_path):
    varied = config.data.model_copy(update={"other_boxes_px": (16, 64), "other_box_probability": 1.0})
    data = SimulatedParticles(varied, held_out=False, seed=5, cache=tmp_path / "bank.safetensors", log=quiet)
    shapes = {tuple(data.batch(number, 8)[0].shape) for number in range(12)}
    assert shapes == {(32, 1, 16, 16), (2, 1, 64, 64)}


def test_held_out_structures_are_never_in_training(config):
    assert [path.name for path in find_structures(config.data, held_out=False)] == ["one.pdb", "two.pdb"]
    assert [path.name for path in find_structures(config.data, held_out=True)] == ["kept.pdb"]


def test_unknown_held_out_name_is_refused(config):
    with pytest.raises(ConfigurationError, match="held_out names missing"):
        find_structures(config.data.model_copy(update={"held_out": ("missing",)}), held_out=True)


def test_empty_folder_is_refused(config, tmp_path):
    data = config.data.model_copy(update={"structures": tmp_path, "held_out": ()})
    with pytest.raises(ConfigurationError, match="no training PDB or mmCIF file"):
        find_structures(data, held_out=False)


def test_schedule_warms_up_and_falls_to_zero(config):
    options = config.optimisation.model_copy(update={"steps": 100, "warmup_steps": 10})
    assert session.schedule(0, options) == pytest.approx(0.1)
    assert session.schedule(9, options) == 1
    assert session.schedule(55, options) == pytest.approx(0.5, abs=0.02)
    assert session.schedule(100, options) == pytest.approx(0)


def test_loss_weighs_images_by_the_root_of_their_snr():
    estimate, clean = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    snr = torch.tensor([0.02, 0.14])
    expected = (1 / math.sqrt(0.04) + 1 / math.sqrt(0.16)) / 2
    loss = session.Loss(LossConfig(), torch.device("cpu"))
    assert loss(estimate, clean, snr).item() == pytest.approx(expected)
    assert loss(estimate, clean, torch.tensor([math.nan, math.nan])).item() == 1  # as it is, without an SNR


# presets of other commands and forms, tested with them
OTHER_PRESETS = ("segmentation", "nt2c", "nt2c_published")


PRESETS = [path for path in sorted(PRESET_FOLDER.glob("*.yaml")) if path.stem not in OTHER_PRESETS]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_a_valid_configuration_of_a_network_that_exists(path):
    config = load_yaml(path, TrainingConfig)
    assert config.name == path.stem
    network = session.make_network(config.model_copy(update={"initial_weights": None}))
    stride = int(network.stride)
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 1, stride, stride)).shape == (1, 1, stride, stride)
    if config.adversarial is not None:
        make_critic(config.adversarial)
