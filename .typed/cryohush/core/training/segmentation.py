"""Training of the network that segments micrographs: cross-entropy on random crops."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ..config.segmentation import SegmentationConfig
from ..errors import Aborted
from ..imaging.noise import image_generator
from ..models import SEGMENTERS
from ..models.segmentation import SegmentationUNet
from ..models.weights import load_model, save_model
from ..noise.segmentation import UNKNOWN, class_overlap, confusion
from .checkpoint import load_checkpoint, save_checkpoint
from .segmentation_data import LabelledMicrographs, own_micrographs, simulated_micrographs
from .session import refuse_if_diverged, schedule, set_learning_rate, update_average


def train_segmentation(
    config: SegmentationConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    log: Callable[[str], None] = print,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a network and return the path of its weights.

    `output_dir` gets `micrographs-*.safetensors` (the simulated ones, used again by a later run), `last.pt`
    (everything a killed run needs to go on to the same result), `segmentation.jsonl` (one line for each
    validation) and in the end `weights.safetensors`, the moving average of the weights.

    Raises
    ------
    InputError, ConfigurationError
        What to train on cannot be read or used.
    CryohushError
        The loss is not finite, or `last.pt` belongs to another configuration.
    Aborted
        `should_stop` said so; `last.pt` holds the state.
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
    checkpoint, record = output_dir / "last.pt", output_dir / "segmentation.jsonl"
    parts = {"network": network, "average": average, "optimiser": optimiser}
    first, lines = 0, []
    if resume and checkpoint.exists():
        first = load_checkpoint(checkpoint, config, parts)
        log(f"resumed at step {first}")
        if record.exists():  # it may be ahead of the checkpoint
            lines = [json.loads(line) for line in record.read_text().splitlines()]
            lines = [line for line in lines if line["step"] <= first]
    for step in range(first, options.steps):
        if should_stop():
            save_checkpoint(checkpoint, config, step, parts)
            raise Aborted(f"stopped at step {step}; run again with --resume to go on")
        generator = image_generator(config.seed, step, "crops")
        images, labels = (
            part.to(device) for part in training.batch(options.batch_size, options.crop_px, generator)
        )
        set_learning_rate(optimiser, options.learning_rate * schedule(step, options))
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels, weights, ignore_index=UNKNOWN)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        update_average(average, network, step, options.ema_decay)
        done = step + 1
        if done % options.validate_every and done != options.steps:
            continue
        refuse_if_diverged(loss.item(), done, checkpoint)
        line = {"step": done, "loss": loss.item(), **validate_segmentation(average, validation)}
        lines.append(line)
        record.write_text("".join(json.dumps(line) + "\n" for line in lines))
        log(" ".join(f"{name} {value:.4g}" for name, value in line.items()))
        save_checkpoint(checkpoint, config, done, parts)
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
