"""What a model invents: of pure noise, and of a structure that is known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inference.denoiser import Denoiser
from ..inference.devices import choose_precision, resolve_devices
from ..metrics import hallucination
from ..models.weights import load_model
from ..report.html import Picture, Section
from ..spread import evenly_spread
from .comparison import Sources
from .figures import noise_figures
from .tasks import Check, Found

# Box of the noise where there are no images, and how many images a model sees at once.
_BOX_PX, _BATCH = 128, 32
_SHOWN_NOISE = 6
# Images of a known structure for the figures that need the truth.
_KNOWN_IMAGES = 128


def model_figures(name: str, sources: Sources | None, n_noise: int, device: str, check: Check) -> Found:
    """What a model makes of pure noise; with raw and clean images also of a structure that is known."""
    model = load_model(name)
    where = resolve_devices(device)[0]
    precision, _ = choose_precision(where, "auto")
    denoiser = Denoiser(model.module, where, precision)

    def denoise(images: Tensor) -> Tensor:
        parts = []
        for begin in range(0, len(images), _BATCH):
            parts.append(torch.from_numpy(denoiser(images[begin : begin + _BATCH].numpy())))
            check()
        return torch.cat(parts)

    generator = torch.Generator().manual_seed(0)
    shape = (_BOX_PX, _BOX_PX) if sources is None else sources.denoised.shape
    kinds = {"white": torch.randn(n_noise, *shape, generator=generator)}
    raw = None if sources is None else sources.raw
    if raw is not None:
        like = raw.read(evenly_spread(len(raw), _KNOWN_IMAGES))
        kinds["spectrum of the raw images"] = hallucination.coloured_noise(n_noise, like, generator)
    numbers: dict[str, Any] = {"name": model.name, "sha256": model.sha256, "pure_noise": {}}
    rows: list[tuple[str, str, str]] = []
    pictures = []
    for kind, noise in kinds.items():
        output = denoise(noise)
        found = hallucination.pure_noise_figures(noise, output)
        numbers["pure_noise"][kind] = asdict(found)
        rows += _rows(kind, found)
        figure = noise_figures(
            noise[:_SHOWN_NOISE].numpy(), output[:_SHOWN_NOISE].numpy(), found.half_set_frc,
            found.half_set_frc_of_input,
        )  # fmt: skip
        caption = f"Pure noise ({kind}), what the model makes of it, and whether two half sets of that agree."
        pictures.append(Picture(f"noise_{kind.partition(' ')[0]}", caption, figure))
    if sources is not None and raw is not None and sources.reference is not None:
        chosen = evenly_spread(len(raw), _KNOWN_IMAGES)
        clean = sources.reference.read(chosen)
        noise = raw.read(chosen) - clean
        unseen = hallucination.unseen_structure_figures(denoise, clean, noise)
        mirrored = hallucination.mirrored_map_figures(denoise, clean, noise)
        numbers |= {"unseen_structure": asdict(unseen), "mirrored_map": asdict(mirrored)}
        rows += [
            ("correlation with the clean images", f"{mirrored.original:.4f}", ""),
            ("the same, all mirrored", f"{mirrored.mirrored:.4f}", f"{mirrored.original:.4f}"),
        ]
    return numbers, Section(
        f"What {model.name} invents",
        notes=[
            "Given pure noise, a denoiser should return next to nothing. Outputs that correlate with each "
            "other, or half sets of them that agree, are the model's own idea of a particle, and it adds the "
            "same to real images. These figures say that invention happens, not how much of it is in a given "
            "image."
        ],
        header=("", "found", "ideal, or as in the noise"),
        rows=rows,
        pictures=pictures,
    )


def _rows(kind: str, found: hallucination.PureNoiseFigures) -> list[tuple[str, str, str]]:
    """What came out of one kind of noise, beside the ideal or the noise's own."""
    band = slice(1, max(2, len(found.half_set_frc) // 2))
    return [
        (f"{kind} noise: variance kept", f"{found.variance_ratio:.4f}", "0"),
        ("correlation between outputs", f"{found.correlation_between_outputs:.4f}",
         f"{found.correlation_between_inputs:.4f}"),
        ("half-set FRC to half of Nyquist", f"{np.mean(found.half_set_frc[band]):.3f}",
         f"{np.mean(found.half_set_frc_of_input[band]):.3f}"),
        ("variance in the centre over border", f"{found.centre_to_border_variance:.2f}",
         f"{found.centre_to_border_variance_of_input:.2f}"),
    ]  # fmt: skip
