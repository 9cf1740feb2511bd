"""Models on disk: a `.safetensors` file that says in its own metadata which network it belongs to.

A file's metadata holds one JSON text under `cryohush`: `model` (`name` in the registry and `arguments` of the
constructor), and what else its maker wants to say (`description`, `training`, `measured`): the card. Shipped
models are listed in `weights/manifest.yaml`, which also holds the SHA-256 of each file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import yaml
from safetensors import SafetensorError
from torch import nn

from ..errors import ModelError
from ..io.files import link_target, writing
from ..registry import is_place
from . import ALL_NETWORKS, MODELS, SEGMENTERS, VIEW_NETWORKS, DenoisingNetwork, Networks
from .base import require_denoising_network

# The fast one, where PyYAML was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
# What a training run calls its result.
WEIGHTS_NAME = "weights.safetensors"
# Places of networks, comma-separated, that may be imported when a weights file names them.
TRUST_VARIABLE = "CRYOHUSH_NETWORKS"
_METADATA_KEY = "cryohush"
_PURPOSES = (
    (MODELS, "denoises"),
    (SEGMENTERS, "labels micrographs"),
    (VIEW_NETWORKS, "serves the context of stacks"),
)


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, in float32 on the CPU, ready to run.

    Attributes
    ----------
    name
        The name or path that it was asked for by.
    module
        The network, in evaluation mode.
    sha256
        Of the weights file.
    card
        What is known of the model: `model`, `description`, `training`, `measured`.
    path
        The weights file.
    """

    name: str
    module: DenoisingNetwork
    sha256: str
    card: dict[str, Any]
    path: Path

    @property
    def stride(self) -> int:
        """What the sides of an image must be multiples of."""
        return self.module.stride

    @property
    def trained_pixel_sizes_angstrom(self) -> tuple[float, float] | None:
        """Smallest and largest pixel size that it was trained on; None if its card does not say."""
        try:
            low, high = self.card["training"]["data"]["pixel_size_angstrom"]
            return (float(low), float(high)) if 0 < float(low) <= float(high) else None
        except (KeyError, TypeError, ValueError):
            return None


class Weights:
    """A model by its file: what is sent to a worker, which loads it once and then has it at hand.

    Where the model is loaded already, it is not loaded again.

    Attributes
    ----------
    path, sha256
        The weights file.
    """

    def __init__(self, path: Path, sha256: str, model: LoadedModel | None = None) -> None:
        self.path, self.sha256, self._model = path.absolute(), sha256, model

    @classmethod
    def of(cls, model: LoadedModel) -> Weights:
        """Return those of a model that is loaded."""
        return cls(model.path, model.sha256, model)

    def load(self) -> LoadedModel:
        """
        Raises
        ------
        ModelError
            If the file is another one by now.
        """
        return self._model or load_same_model(self.path, self.sha256)

    def __reduce__(self) -> tuple[type[Weights], tuple[Path, str]]:
        return Weights, (self.path, self.sha256)


@functools.lru_cache(maxsize=2)
def load_same_model(path: Path, sha256: str) -> LoadedModel:
    """Load the model that the driver of a batch has seen, of whatever kind; kept for the next call.

    Raises
    ------
    ModelError
        If it is another one by now.
    """
    model = load_model(path, ALL_NETWORKS)
    if model.sha256 != sha256:
        raise ModelError(
            f"{path}: the weights were replaced while the batch ran: SHA-256 {sha256} was expected, "
            f"{model.sha256} found."
        )
    return model


def list_models() -> dict[str, dict[str, Any]]:
    """Return the shipped models: name to manifest entry (`file`, `sha256`, `model`, `description`, ...).

    Raises
    ------
    ModelError
        If the manifest is there but cannot be read.
    """
    path = WEIGHTS_FOLDER / "manifest.yaml"
    if not path.exists():
        return {}
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: the list of models cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: expected `name: entry` lines, found a {type(entries).__name__}.")
    return entries


def load_model(name_or_path: str | Path, networks: Networks = MODELS) -> LoadedModel:
    """Load a shipped model by its name, or a user's by the path of its `.safetensors` file.

    Parameters
    ----------
    name_or_path
        Which model. The folder of a training run stands for the `weights.safetensors` in it.
    networks
        The registry that its network has to be in: denoisers, unless `SEGMENTERS` is given.

    Raises
    ------
    ModelError
        If there is no such model or file, if the weights are not those that the manifest names, or if they do
        not fit the network that they claim to belong to, or that is of another kind.
    """
    name = str(name_or_path)
    shipped = list_models()
    if name in shipped:
        entry = dict(shipped[name])
        path = WEIGHTS_FOLDER / str(entry.pop("file"))
        data, sha256 = _read(path)
        if sha256 != entry.pop("sha256"):
            raise ModelError(
                f"{path}: the weights of model {name!r} are damaged or were replaced: SHA-256 "
                f"{shipped[name]['sha256']} was expected, {sha256} found. Install cryohush again."
            )
        card = {**_metadata(path, data), **entry}
    else:
        path = Path(name) / WEIGHTS_NAME if Path(name).is_dir() else Path(name)
        if path.suffix != ".safetensors":
            known = ", ".join(shipped) or "none"
            raise ModelError(
                f"unknown model {name!r}. Shipped models: {known}. Or give the path of a .safetensors file "
                "or of a training run's folder."
            )
        data, sha256 = _read(path)
        card = _metadata(path, data)
    return LoadedModel(name, _build(path, data, card, networks), sha256, card, path)


def save_model(
    path: str | Path, module: nn.Module, name: str, arguments: Mapping[str, Any], card: Mapping[str, Any]
) -> str:
    """Write a network's weights with all that `load_model` needs, and return the file's SHA-256.

    Parameters
    ----------
    path
        A `.safetensors` file; it appears whole or not at all.
    module
        The network; its weights are stored in the number format that they have.
    name, arguments
        The network's name in the registry, and the arguments of its constructor.
    card
        JSON-able: `description`, `training`, `measured`.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = Path(path)
    metadata = {**card, "model": {"name": name, "arguments": dict(arguments)}}
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with writing(path, len(data)) as part:
        part.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror}{link_target(path)}"
        raise ModelError(f"{path}: the weights cannot be read: {reason}.") from error
    return data, hashlib.sha256(data).hexdigest()


def _metadata(path: Path, data: bytes) -> dict[str, Any]:
    """Return the card in a safetensors file: its header is a length (8 bytes) and that much JSON."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        card = json.loads(header["__metadata__"][_METADATA_KEY])
        network = card["model"]
        if not (isinstance(network["name"], str) and isinstance(network["arguments"], dict)):
            raise TypeError("a network's name is a text, and its arguments have names")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path}: not a model of cryohush: expected a safetensors file whose metadata say under "
            f"{_METADATA_KEY!r} which network it belongs to."
        ) from error
    return dict(card)


def _build(path: Path, data: bytes, card: Mapping[str, Any], networks: Networks) -> DenoisingNetwork:
    name, arguments = card["model"]["name"], card["model"]["arguments"]
    if is_place(name):
        _require_trust(path, name)
    if name not in networks:
        if name in ALL_NETWORKS:
            (found,) = (what for kind, what in _PURPOSES if name in kind)
            wanted = next((what for kind, what in _PURPOSES if kind is networks), "makes noise")
            raise ModelError(f"{path}: a model that {found}, where one that {wanted} is needed.")
        known = ", ".join(sorted(ALL_NETWORKS))
        raise ModelError(
            f"{path}: unknown network {name!r}; this version has {known}. Install the package that it is of."
        )
    make = networks[name]
    if is_place(name) and not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise ModelError(f"{path}: the weights name {name}, which is no network.")
    try:
        module = make(**arguments)
        module.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        # torch lists every tensor that does not fit, one per line: two of them tell enough
        details = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise ModelError(f"{path}: the weights do not fit the network that they name: {details}") from error
    module = module.eval().float().requires_grad_(False)
    if networks is MODELS and not MODELS.is_own(name):
        return require_denoising_network(module, name)
    return cast(DenoisingNetwork, module)


def _require_trust(path: Path, place: str) -> None:
    """Import code on a file's word only where somebody else has named it.

    Raises
    ------
    ModelError
        Nobody has.
    """
    module = place.partition(":")[0]
    trusted = os.environ.get(TRUST_VARIABLE, "").split(",")
    if not (module in sys.modules or place in MODELS.places() or place in trusted):
        raise ModelError(
            f"{path}: the weights belong to the network {place}, and no code is imported because a file says "
            f"so. If you trust it, set {TRUST_VARIABLE}={place} in the environment, or let its package offer "
            "it as an entry point of the group cryohush.networks."
        )
