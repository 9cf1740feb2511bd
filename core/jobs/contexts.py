"""The contexts of a denoising run: found once, kept in its folder, and taken from there when it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.denoise import CONTEXT_NAME, DenoiseOptions
from ..context.contexts import StackContexts, find_contexts, load_contexts
from ..inference.plan import ImageSet, StackPlan
from ..io.particles import ParticleSet
from ..models.weights import LoadedModel


@dataclasses.dataclass(frozen=True)
class RunContexts:
    """What a run knows of its stacks.

    Attributes
    ----------
    contexts
        None where each image is denoised by itself.
    record
        What the run's record says of it.
    """

    contexts: StackContexts | None
    record: dict[str, Any]


def contexts_of(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    model: LoadedModel,
    options: DenoiseOptions,
    output_dir: Path,
    *,
    parts: Mapping[str, str],
    goes_on: bool,
    log: Callable[[str], None],
    stop_if_asked: Callable[[], None],
) -> RunContexts:
    """Find the contexts of a run, and write them to its folder.

    Parameters
    ----------
    parts
        Digests of what the run's files are made of.
    goes_on
        Whether a run is gone on with: the contexts that it has found then stay as they are, and only
        groups of images that are new get one. Where images that they know are no longer the same, all are
        found anew.
    stop_if_asked
        Called while a map is looked for; may raise to stop.
    """
    if not getattr(model.module, "context_channels", 0):
        return RunContexts(None, {"used": False, "why": "this model sees single images"})
    if not isinstance(images, ParticleSet):
        return RunContexts(None, {"used": False, "why": "micrographs have none"})
    if options.context == "none":
        return RunContexts(None, {"used": False, "why": "not wanted"})
    path = output_dir / CONTEXT_NAME
    digests = {stack.name: parts[stack.name] for stack in stacks}
    known = load_contexts(path) if goes_on and path.exists() else None
    if known is not None and any(known.digests.get(name, one) != one for name, one in digests.items()):
        known = None
        log("images have changed since the run began: what the stack adds is found anew")
    contexts = find_contexts(
        images,
        dark_stacks=frozenset(number for number, stack in enumerate(stacks) if stack.protein_dark),
        pixel_sizes_angstrom=[stack.pixel_size_angstrom for stack in stacks],
        diameter_angstrom=options.particle_diameter_angstrom,
        known=known,
        with_map=stop_if_asked if options.context == "map" else None,
        log=log,
    )
    contexts = dataclasses.replace(contexts, digests=digests)
    sha256 = contexts.save(path)
    record = {
        "used": bool(contexts.contexts),
        "map": contexts.of_map,
        "sha256": sha256,
        "groups": list(contexts.notes.values()),
    }
    return RunContexts(contexts if contexts.contexts else None, record)
