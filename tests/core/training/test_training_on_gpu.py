"""Training on a GPU, where batches are simulated too."""

import pytest
import torch

from cryohush.core.errors import Aborted
from cryohush.core.imaging.normalise import background_statistics, default_radius_px
from cryohush.core.job_context import JobContext
from cryohush.core.models.weights import load_model
from cryohush.core.training import supervised
from cryohush.core.training.data import SimulatedParticles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def quiet(_: str) -> None:
    pass


def test_batches_are_made_on_the_gpu_and_normalised_there(config, tmp_path):
    device = torch.device("cuda:0")
    options = {"held_out": False, "seed": 5, "cache": tmp_path / "bank.safetensors", "log": quiet}
    data = SimulatedParticles(config.data, **options, device=device)
    noisy, clean, snr = data.batch(3, 256)
    assert noisy.is_cuda
    assert clean.is_cuda
    assert torch.equal(noisy, data.batch(3, 256)[0])
    mean, std = background_statistics(noisy[:, 0], default_radius_px((32, 32)))
    torch.testing.assert_close(mean.cpu(), torch.zeros(256), atol=1e-5, rtol=0)
    torch.testing.assert_close(std.cpu(), torch.ones(256), atol=1e-5, rtol=0)
    # other numbers than on the CPU, of one distribution: 256 variances of each
    on_cpu = SimulatedParticles(config.data, **options).batch(3, 256)
    for one, other in ((clean, on_cpu[1]), (noisy - clean, on_cpu[0] - on_cpu[1])):
        assert float(one.var((1, 2, 3)).mean()) == pytest.approx(float(other.var((1, 2, 3)).mean()), rel=0.2)
    assert 0 <= float(snr.min()) <= float(snr.max()) <= 1


def test_killed_run_resumes_on_the_gpu(config, tmp_path):
    undisturbed = load_model(supervised.train(config, tmp_path / "a")).module.state_dict()
    calls = iter(range(100))
    with pytest.raises(Aborted, match="step 7"):
        supervised.train(config, tmp_path / "b", context=JobContext(should_stop=lambda: next(calls) == 7))
    weights = supervised.train(config, tmp_path / "b", resume=True)
    resumed = load_model(weights).module.state_dict()
    # sums on a GPU are not in one order, and half precision rounds what is stored
    for name, value in undisturbed.items():
        torch.testing.assert_close(resumed[name], value, atol=2e-3, rtol=2e-3)
