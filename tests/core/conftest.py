"""A small network with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cryohush.core.models import MODELS
from cryohush.core.models.weights import LoadedModel, load_model, save_model

NETWORK: dict[str, Any] = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a network with a stride of 4 whose every layer does something."""
    module = MODELS["shuffle_unet"](**NETWORK)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(path, module, "shuffle_unet", NETWORK, {"description": "random weights"})
    return path


@pytest.fixture
def weights(weights_file: Path, tmp_path: Path) -> Path:
    """A copy of it for a test alone."""
    return Path(shutil.copy(weights_file, tmp_path))


@pytest.fixture
def model(weights: Path) -> LoadedModel:
    return load_model(weights)
