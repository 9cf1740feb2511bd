"""Whether like views, or a map, take part in the stacks of users' tasks, and how much their contexts explain.

    python task_contexts.py --structures DIR --output OUT [--tasks ...] [--repeats 1] [--map] [--quick]

Makes the first stacks of classification.py, sorting.py, sorted_maps.py, found_poses.py and heterogeneity.py
anew, from the same seeds, and looks for the context of each as `cryohush denoise` does, with `--map` for that
of `--context map`, too; nothing is denoised and nothing judged. Where like views take no part, a task's
figures do not depend on their network.

Writes task_contexts.json and task_contexts.md to OUT.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import classification
import found_poses
import heterogeneity
import sorting
import torch
from torch import Tensor
from user_tasks import Cells, simulate_particles, structure_file, task_parser

from cryohush.core.context.contexts import context_of_images
from cryohush.core.context.like_views import LikeViews
from cryohush.core.context.stack_map import StackMap, unasked
from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.structure import read_structure

Stack = tuple[Tensor, CtfParameters, float]
"""Images, their CTFs and pixel size."""
CONTEXT, WITH_MAP = "context", "context with a map"
FIGURES = {
    "of the particles' variance explained": "explained",
    "like views take part by": "views",
    "uneven background": "uneven",
}
OF_MAP = {"a map takes part by": "map", "explained with it": "explained"}


def main() -> None:
    parser = task_parser(__doc__, "the small stacks only")
    parser.add_argument("--tasks", nargs="+", help="those whose name begins so; default: all")
    parser.add_argument("--map", action="store_true", help="look for a map of the particle, too")
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    asked = [CONTEXT, WITH_MAP] if arguments.map else [CONTEXT]
    cells = Cells("task_contexts", {"model": arguments.model}, arguments.output, asked)
    heads = [*FIGURES, *(OF_MAP if arguments.map else ())]
    lines = ["| stack | images of the sample | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for name, make in stacks(arguments):
        if arguments.tasks and not name.startswith(tuple(arguments.tasks)):
            continue
        cell = cells(name, lambda: {kind: of_stack(*make(), with_map=kind == WITH_MAP) for kind in asked})  # noqa: B023
        shares = [cell[CONTEXT][figure] for figure in FIGURES.values()]
        if arguments.map:
            shares += [cell[WITH_MAP][figure] for figure in OF_MAP.values()]
        entries = [f"{cell[CONTEXT]['images']:.0f}", *(f"{share:.2f}" for share in shares)]
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    text = "\n".join(lines) + "\n"
    (arguments.output / "task_contexts.md").write_text(text, encoding="utf-8")
    print(text)


def of_stack(images: Tensor, optics: CtfParameters, pixel_size: float, *, with_map: bool) -> dict[str, float]:
    context, note = context_of_images(
        images, optics, pixel_size_angstrom=pixel_size, with_map=unasked if with_map else None
    )
    if context is None:
        raise SystemExit(f"no context: {note}")
    return {
        "images": context.n_images,
        "explained": float(context.explained.mean()),
        "views": context.views.share if isinstance(context.views, LikeViews) else 0.0,
        "map": context.views.share if isinstance(context.views, StackMap) else 0.0,
        "uneven": context.unevenness,
    }


def stacks(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Stack]]]:
    """Names of stacks, and what makes them."""

    def particles(names: tuple[str, ...], n: int, share: float, seed: int) -> Stack:
        files = [structure_file(arguments.structures, name) for name in names]
        made, _, pixel_size = simulate_particles(files, n, 64, share, seed)
        return made.images, made.optics, pixel_size

    def mixed(name: str, seed: int, n: int, shares: dict[str, float]) -> Stack:
        structure = read_structure(structure_file(arguments.structures, name))
        images, optics, _, pixel_size = sorting.mixed_stack(structure, seed, n, shares)
        return images, optics, pixel_size

    def states(n: int, seed: int) -> Stack:
        images, optics, pixel_size, _, _ = heterogeneity.two_states(arguments.structures, n, 0.03, seed)
        return images, optics, pixel_size

    for repeat in range(arguments.repeats):
        for mixture, sets in classification.MIXTURES.items():
            for n in () if arguments.quick else (1000, 5000):
                names, seed = sets[repeat % len(sets)], 100 + repeat
                share = classification.DIAMETER_SHARE
                yield (
                    f"classes of {n}, {mixture}, {repeat + 1}",
                    lambda names=names, n=n, share=share, seed=seed: particles(names, n, share, seed),
                )
        for name in found_poses.STRUCTURES:
            share, seed = found_poses.DIAMETER_SHARE, 200 + repeat
            yield (
                f"poses, {name}, {repeat + 1}",
                lambda name=name, share=share, seed=seed: particles((name,), 250, share, seed),
            )
        for name in ("6cvm", "pdb7pbl"):
            yield (
                f"sorting, {name}, {repeat + 1}",
                lambda name=name, repeat=repeat: mixed(name, repeat, 1000, sorting.SHARES),
            )
        for junk in (0.2, 0.5):
            shares = {
                kind: 1 - junk if kind == "particle" else share * junk / (1 - sorting.SHARES["particle"])
                for kind, share in sorting.SHARES.items()
            }
            yield (
                f"maps after sorting, junk {junk:.0%}, 6cvm, {repeat + 1}",
                lambda repeat=repeat, shares=shares: mixed("6cvm", 50 + repeat, 400, shares),
            )
        for n in (600,) if arguments.quick else (600, 10000):
            yield (
                f"conformations, {n} images, {repeat + 1}",
                lambda n=n, repeat=repeat: states(n, repeat),
            )


if __name__ == "__main__":
    main()
