"""Training of the network that segments micrographs: cross-entropy on random crops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..config.segmentation import SegmentationConfig
from ..imaging.noise import image_generator
from ..job_context import QUIET, JobContext
from ..models import SEGMENTERS
from ..models.segmentation import SegmentationUNet
from ..models.weights import WEIGHTS_NAME, load_model, save_model
from ..noise.segmentation import BACKGROUND, PARTICLE, UNKNOWN, class_overlap, confusion
from .frame import Frame
from .record import Preview, PreviewRow, values_of
from .segmentation_data import LabelledMicrographs, own_micrographs, simulated_micrographs
from .session import (
    descend,
    schedule,
    set_learning_rate,
    start_average,
    start_fabric,
    update_average,
)

_SHOWN, _SHOWN_PX = 4, 128
_LABELS = (float(BACKGROUND), float(PARTICLE))


def train_segmentation(
    config: SegmentationConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    context: JobContext = QUIET,
) -> Path:
    """Train a network and return the path of its weights.

    `output_dir` gets `micrographs-*.safetensors` (the simulated ones, used again by a later run), `last.pt`
    (everything an interrupted run needs to go on to the same result), `log.jsonl` (one line for each
    validation), `curves.png`, `validation.png`, TensorBoard's events, and in the end `weights.safetensors`,
    the moving average of the weights.

    Raises
    ------
    InputError, ConfigurationError
        What to train on cannot be read or used.
    CryohushError
        The loss is not finite, or `last.pt` belongs to another configuration.
    Aborted
        The caller wants it to stop; `last.pt` holds the state.
    """
    options = config.optimisation
    fabric = start_fabric("bf16-mixed")
    frame = Frame(
        config,
        output_dir,
        fabric,
        steps=options.steps,
        validate_every=options.validate_every,
        context=context,
    )
    with fabric.rank_zero_first():
        training, validation = _data(config, output_dir, frame.context.log)
    torch.manual_seed(config.seed)
    network = SegmentationUNet(**config.arguments)
    if config.initial_weights is not None:
        initial = load_model(config.initial_weights, SEGMENTERS).module
        network.load_state_dict(initial.state_dict())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = start_average(network, fabric.device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    model, optimiser = fabric.setup(network, optimiser)
    frame.begin(resume=resume, average=average, network=network, optimiser=optimiser)

    def judge() -> tuple[dict[str, float], Preview]:
        return validate_segmentation(average, validation), preview_segmentation(average, validation)

    weights = torch.tensor(options.class_weights, device=fabric.device)
    for step in frame.steps(judge):
        generator = image_generator(config.seed, step, "crops")
        images, labels = (
            part.to(fabric.device) for part in training.batch(options.batch_size, options.crop_px, generator)
        )
        set_learning_rate(optimiser, options.learning_rate * schedule(step, options))
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, labels, weights, ignore_index=UNKNOWN)
        descend(fabric, model, optimiser, loss, gradient_clip=1.0)
        update_average(average, network, step, options.ema_decay)
        frame.add(loss=loss)
    card = {
        "description": config.description,
        "training": json.loads(
            config.model_dump_json(exclude_none=True, exclude={"simulated": {"structures"}})
        ),
        "structures": sorted(set(training.names)),
        "held_out_structures": sorted(set(validation.names)),
        "measured": values_of(frame.last_line),
    }
    path = output_dir / WEIGHTS_NAME
    save_model(path, frame.best.cpu().half(), "segmentation_unet", config.arguments, card)
    return path


def validate_segmentation(network: SegmentationUNet, data: LabelledMicrographs) -> dict[str, float]:
    """Intersection over union of each class, over all pixels of whole micrographs."""
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for index, image in enumerate(data.images):
        found = found_labels(network, image)
        counts += confusion(found, data.labels[index][: found.shape[0], : found.shape[1]])
    return {f"iou_{name}": value for name, value in class_overlap(counts).items()}


@torch.inference_mode()
def found_labels(network: SegmentationUNet, image: Tensor) -> Tensor:
    """`(y, x)` labels of a micrograph `(y, x)`, cut to what the network's stride allows."""
    device = next(network.parameters()).device
    y, x = (side // network.stride * network.stride for side in image.shape)
    with torch.autocast(device.type, torch.bfloat16):
        labels: Tensor = network(image[None, None, :y, :x].float().to(device)).argmax(1)[0].cpu()
    return labels


def preview_segmentation(network: SegmentationUNet, data: LabelledMicrographs) -> Preview:
    """The middle of some micrographs, their labels as found and as they should be: background
    black, contamination grey, particles white."""
    shown = range(min(_SHOWN, len(data.images)))
    side = min(_SHOWN_PX, *(min(data.images[index].shape) for index in shown))

    def middle(image: Tensor) -> Tensor:
        top, left = ((length - side) // 2 for length in image.shape)
        return image[top : top + side, left : left + side].float()

    crops = [middle(data.images[index]) for index in shown]
    truth = [middle(data.labels[index]) for index in shown]
    found = [found_labels(network, crop) for crop in crops]
    side = len(found[0])
    rows = (
        PreviewRow("micrograph", torch.stack(crops)[:, :side, :side], 0),
        PreviewRow("labels found", torch.stack(found).float(), 1, _LABELS),
        PreviewRow("true labels", torch.stack(truth)[:, :side, :side], 1, _LABELS),
    )
    # pixels are of about 8 Å, in each micrograph of another size
    return Preview(rows, [data.names[index] for index in shown])


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
