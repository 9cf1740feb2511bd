"""Losses that a loop could compute in full precision only."""

from __future__ import annotations

import json

from cryohush.core.config.training import TrainingConfig
from cryohush.core.training.run import train


def test_gradient_penalty_in_bfloat16(tiny, tmp_path):
    """Fabric lets no backward pass but its own begin at what it wraps; the penalty needs one."""
    critic = {"name": "resnet", "arguments": {"width": 4, "downs": 2}}
    config = TrainingConfig.model_validate(
        {
            **tiny,
            "network": {"name": "resnet_autoencoder", "arguments": {"width": 4, "downs": 2, "blocks": 1}},
            "adversarial": {"critic": critic, "score": "wasserstein", "gradient_penalty": 10.0},
            "optimisation": {**tiny["optimisation"], "steps": 4, "precision": "bf16-mixed"},
        }
    )
    train(config, tmp_path / "run")
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    # a fresh critic's gradient is far from 1 in norm, so that the penalty counts
    assert 0.1 < line["critic"] < 100
