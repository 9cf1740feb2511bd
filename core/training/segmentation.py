"""Training of the network that segments micrographs: cross-entropy on random crops."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ..config.segmentation import SegmentationConfig, SegmentationOptimisation
from ..errors import Aborted, CryohushError
from ..imaging.noise import image_generator
from ..models import SEGMENTERS
from ..models.segmentation import SegmentationUNet
from ..models.weights import load_model, save_model
from ..noise.segmentation import UNKNOWN, class_overlap, confusion
from .segmentation_data import LabelledMicrographs, own_micrographs, simulated_micrographs


def train_segmentation(
    config: SegmentationConfig,
    output_dir: Path,
    *,
    log: Callable[[str], None] = print,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a network and return the path of its weights.

    `output_dir` gets `micrographs-*.safetensors` (the simulated ones, used again by a later run),
    `segmentation.jsonl` (one line for each validation) and in the end `weights.safetensors`, the moving
    average of the weights.

    Raises
    ------
    InputError, ConfigurationError
        What to train on cannot be read or used.
    CryohushError
        The loss is not finite.
    Aborted
        `should_stop` said so.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    training, validation = _data(config, output_dir, log)
    options = config.optimisation
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    network = SegmentationUNet(**config.arguments)
    if config.initial_weights is not None:
        initial = load_model(config.initial_weights, SEGMENTERS).module
        network.load_state_dict(initial.state_dict())
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    weights = torch.tensor(options.class_weights, device=device)
    lines = []
    for step in range(options.steps):
        if should_stop():
            raise Aborted(f"stopped at step {step}")
        generator = image_generator(config.seed, step, "crops")
        images, labels = (
            part.to(device) for part in training.batch(options.batch_size, options.crop_px, generator)
        )
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, options)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels, weights, ignore_index=UNKNOWN)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(options.ema_decay, (1 + step) / (10 + step))
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)
        done = step + 1
        if done % options.validate_every and done != options.steps:
            continue
        if not math.isfinite(loss.item()):
            raise CryohushError(f"the loss is not finite at step {done}: lower optimisation.learning_rate.")
        line = {"step": done, "loss": loss.item(), **validate_segmentation(average, validation)}
        lines.append(line)
        (output_dir / "segmentation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        log(" ".join(f"{name} {value:.4g}" for name, value in line.items()))
    card = {
        "description": config.description,
        "training": json.loads(
            config.model_dump_json(exclude_none=True, exclude={"simulated": {"structures"}})
        ),
        "structures": sorted(set(training.names)),
        "held_out_structures": sorted(set(validation.names)),
        "measured": lines[-1],
    }
    path = output_dir / "weights.safetensors"
    save_model(path, average.cpu().half(), "segmentation_unet", config.arguments, card)
    return path


@torch.inference_mode()
def validate_segmentation(network: nn.Module, data: LabelledMicrographs) -> dict[str, float]:
    """Intersection over union of each class, over all pixels of whole micrographs."""
    device = next(network.parameters()).device
    stride = int(network.stride)  # type: ignore[arg-type]
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for image, labels in zip(data.images, data.labels, strict=True):
        y, x = (side // stride * stride for side in image.shape)
        with torch.autocast(device.type, torch.bfloat16):
            found = network(image[None, None, :y, :x].float().to(device)).argmax(1)[0].cpu()
        counts += confusion(found, labels[:y, :x])
    return {f"iou_{name}": value for name, value in class_overlap(counts).items()}


def _data(
    config: SegmentationConfig, output_dir: Path, log: Callable[[str], None]
) -> tuple[LabelledMicrographs, LabelledMicrographs]:
    if config.own is not None:
        return own_micrographs(config.own, config.seed)
    assert config.simulated is not None  # the configuration has one of the two
    return (
        simulated_micrographs(
            config.simulated,
            held_out=False,
            seed=config.seed,
            cache=output_dir / "micrographs-train.safetensors",
            log=log,
        ),
        simulated_micrographs(
            config.simulated,
            held_out=True,
            seed=config.seed + 1,
            cache=output_dir / "micrographs-held-out.safetensors",
            log=log,
        ),
    )


def _schedule(step: int, options: SegmentationOptimisation) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to 0."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
