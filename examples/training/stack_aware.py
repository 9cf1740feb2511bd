"""Train what tells the error of the model `general`: from structures and CTF tables to weights.

    python stack_aware.py projections --structures FOLDER --output BANK
    python stack_aware.py stacks --projections BANK --ctf-tables TABLE.npy ... --output STACKS
    python stack_aware.py error --stacks STACKS --start WEIGHTS --output RUN --minutes M [--resume]
    python stack_aware.py export --run RUN --output general.safetensors

`projections`: views of volumes, the deposited complexes and symmetric assemblies of pieces of them. `stacks`:
simulated sessions with the context of each image; it goes on until it is stopped, and keeps the newest
`--keep`. `error` reads them while they are made, in bf16, with a learning rate that falls to 0 within the
given time: it trains nothing but what tells the error of an image in a network of single images whose result
is averaged with the context (`ContextAverage`), so that its images stay as they are. All three go on where
they were stopped; what is drawn is a function of the numbers of the files, but which stacks a step of the
training sees depends on how fast they are made.

The structures that are held out of training are those of the preset `general`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timed_training import Schedule, train_for
from torch import Tensor, nn

from cryohush.core.context.stack_context import MOST_IMAGES, circle, fit_context
from cryohush.core.imaging.ctf import read_ctf_table
from cryohush.core.imaging.noise import uniform
from cryohush.core.imaging.normalise import default_radius_px
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.structure import Structure, potential_map, read_structure
from cryohush.core.imaging.symmetry import symmetry_operators
from cryohush.core.models.context_average import ContextAverage
from cryohush.core.models.weights import WEIGHTS_FOLDER, save_model
from cryohush.core.simulation.image_formation import ProjectionBank

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from simulated_stacks import StackRanges, simulate_stack

HELD_OUT = ("1bxn", "2cg9", "4zxb", "6cvm", "6xlu", "pdb7pbl")
# Cubic groups come more often: hollow and nearly round particles are the hardest.
GROUPS = (
    "C2",
    "C3",
    "C4",
    "C5",
    "C6",
    "C7",
    "C8",
    "C12",
    "D2",
    "D3",
    "D4",
    "D5",
    "D6",
    "D7",
    "T",
    "O",
    "O",
    "I",
)
BOX_PX, VIEWS, VOLUMES_PER_STRUCTURE, ASSEMBLIES = 128, 512, 2, 30
NETWORK: dict[str, Any] = {
    "share": 0.5,
    "covariance_share": 0.3,
    "even_covariance_share": 0.6,
    "widths": [48, 96, 160, 160],
    "blocks": [1, 1, 1, 2],
    "unshuffle": 4,
}
BATCH, POOL, KEPT_OF_STACK = 32, 44, 384
LEARNING_RATE, WARM_UP_STEPS, EMA_DECAY = 8e-4, 300, 0.999
NO_CONTEXT, ONE_ESTIMATE = 0.25, 0.07
MASKED, STRIP = 0.04, 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the stack-aware model.")
    commands = parser.add_subparsers(dest="command", required=True)
    projections = commands.add_parser("projections")
    projections.add_argument("--structures", type=Path, required=True)
    stacks = commands.add_parser("stacks")
    stacks.add_argument("--projections", type=Path, required=True)
    stacks.add_argument("--ctf-tables", type=Path, nargs="+", required=True)
    stacks.add_argument("--keep", type=int, default=220, help="newest stacks to keep (50 MB each)")
    error = commands.add_parser("error")
    error.add_argument("--stacks", type=Path, required=True)
    error.add_argument("--start", default="general", help="weights, a file or the name of a shipped model")
    error.add_argument("--minutes", type=float, required=True)
    error.add_argument("--resume", action="store_true")
    export = commands.add_parser("export")
    export.add_argument("--run", type=Path, required=True)
    export.add_argument("--description", default="Any particle, with the context of its stack.")
    for command in (projections, stacks, error, export):
        command.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commands_by_name = {
        "projections": make_projections,
        "stacks": make_stacks,
        "error": train_error,
        "export": export_weights,
    }
    commands_by_name[arguments.command](arguments)


def make_projections(arguments: argparse.Namespace) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in arguments.structures.iterdir() if path.name.endswith(".gz"))
    held_out = [path for path in files if path.name.split(".")[0] in HELD_OUT]
    files = [path for path in files if path not in held_out]
    jobs: list[tuple[str, int, Path, bool]] = []
    for volume in range(VOLUMES_PER_STRUCTURE):
        jobs += [("train", 100 * volume + number, path, False) for number, path in enumerate(files)]
        for number in range(ASSEMBLIES):
            path = files[(7 * number + 3 * volume) % len(files)]
            jobs.append(("train", 100 * volume + 40 + number, path, True))
    jobs = [jobs[place] for place in np.random.default_rng(1).permutation(len(jobs))]
    jobs += [("held", 2000 + number, path, False) for number, path in enumerate(held_out)]
    for kind, number, path, symmetric in jobs:
        target = arguments.output / f"{kind}_{number:04d}.safetensors"
        if target.exists():
            continue
        generator = torch.Generator().manual_seed(number)
        structure = assembly(path, np.random.default_rng(number)) if symmetric else read_structure(path)
        project(structure, target, generator)


def assembly(path: Path, rng: np.random.Generator) -> Structure:
    """A piece of a complex, repeated by a point group so that the copies about touch."""
    whole = read_structure(path)
    positions = whole.positions_angstrom()
    group = GROUPS[rng.integers(len(GROUPS))]
    operators = symmetry_operators(group).numpy()
    distance = np.linalg.norm(positions - positions[rng.integers(len(positions))], axis=1)
    near = np.flatnonzero(distance < rng.uniform(14, 30))
    if len(near) < 150:
        near = np.argsort(distance)[:300]
    most = 60000 // len(operators)
    near = near[np.argsort(distance[near])[:most]]
    atoms = [atom for chain in whole.model for residue in chain for atom in residue]
    piece = positions[near] - positions[near].mean(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    piece = piece @ (turn * np.sign(np.linalg.det(turn))).T
    # the shell's area per copy is about that of a piece
    size = 2 * np.sqrt((piece**2).sum(1).mean())
    factor = 1.0 if len(operators) > 5 else 1.2
    radius = size * math.sqrt(len(operators)) / 2 * rng.uniform(0.75, 1.15) * factor
    direction = rng.normal(size=3)
    piece = piece + radius * direction / np.linalg.norm(direction)
    copies = np.concatenate([piece @ operator.T for operator in operators])
    copies -= copies.mean(0)
    residue = gemmi.Residue()
    residue.name, residue.seqid = "ALA", gemmi.SeqId("1")
    for position, source in zip(copies, itertools.cycle(near.tolist()), strict=False):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.occ, atom.b_iso = atoms[source].name, atoms[source].element, 1.0, 20.0
        atom.pos = gemmi.Position(*position)
        residue.add_atom(atom)
    chain = gemmi.Chain("A")
    chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    reach = float(np.linalg.norm(copies, axis=1).max())
    return Structure(f"{group}_of_{whole.name}", model, reach, len(copies))


def project(structure: Structure, target: Path, generator: torch.Generator) -> None:
    share = uniform(1, (0.3, 0.85), generator).item()
    pixel_size = min(max(2 * structure.radius_angstrom / (share * BOX_PX), 0.8), 6.0)
    pixel_size = max(pixel_size, 2.1 * structure.radius_angstrom / BOX_PX)
    b_factor = 8 * pixel_size**2 + uniform(1, (0, 120), generator).item()
    projector = Projector(potential_map(structure, BOX_PX, pixel_size, b_factor))
    images = torch.empty(VIEWS, BOX_PX, BOX_PX, dtype=torch.float16)
    for members in torch.arange(VIEWS).split(32):
        views = projector(random_rotations(len(members), generator))
        images[members] = (views / views.std(dim=(1, 2), keepdim=True)).half()
    tensors = {
        "images": images,
        "pixel_size_angstrom": torch.tensor([pixel_size]),
        "diameter_px": torch.tensor([2 * structure.radius_angstrom / pixel_size]),
    }
    write(tensors, target)
    print(f"{target.name} {structure.name} {structure.n_atoms} atoms, {pixel_size:.2f} Å", flush=True)


def read_bank(path: Path) -> ProjectionBank:
    tensors = load_file(path)
    n = len(tensors["images"])
    sizes = (tensors[name].expand(n).clone() for name in ("pixel_size_angstrom", "diameter_px"))
    return ProjectionBank(tensors["images"], *sizes, torch.zeros(n, dtype=torch.int64))


def write(tensors: dict[str, Tensor], target: Path) -> None:
    part = target.with_suffix(".part")
    save_file(tensors, part)
    part.rename(target)


def make_stacks(arguments: argparse.Namespace) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    tables = [read_ctf_table(path) for path in arguments.ctf_tables]
    fixed = StackRanges(no_ctf_probability=0.0, unknown_ctf_probability=0.0)
    for number, path in enumerate(sorted(arguments.projections.glob("held_*.safetensors"))[:2]):
        for place, snr in enumerate((0.02, 0.08, 0.3)):
            target = arguments.output / f"held_{number}{place}.safetensors"
            if not target.exists():
                make_stack(
                    [path],
                    tables,
                    replace(fixed, snr=(snr, snr)),
                    777 + 10 * number + place,
                    target,
                    BOX_PX,
                    1000,
                    192,
                )
    files = sorted(arguments.projections.glob("train_*.safetensors"))
    for number in itertools.count():
        target = arguments.output / f"train_{number:06d}.safetensors"
        rng = np.random.default_rng(number)
        chosen = [files[place] for place in rng.permutation(len(files))[:2]]
        u = rng.random()
        box = BOX_PX if u < 0.76 else 64 if u < 0.88 else 192
        if target.exists():
            continue
        n = int(rng.integers(100, 600)) if box == 192 else None
        make_stack(chosen, tables, StackRanges(), 5000 + number, target, box, n, KEPT_OF_STACK)
        for old in sorted(arguments.output.glob("train_*.safetensors"))[: -arguments.keep]:
            old.unlink()


def make_stack(
    files: list[Path],
    tables: list[Any],
    ranges: StackRanges,
    seed: int,
    target: Path,
    box: int,
    n: int | None,
    kept: int,
) -> None:
    """Simulate a stack and write some of its images with their context."""
    generator = torch.Generator().manual_seed(seed)
    stack = simulate_stack([read_bank(path) for path in files], tables, ranges, generator, box, n)
    radius = default_radius_px((box, box)) * float(uniform(1, (0.9, 1.15), generator))
    radius = min(radius, 0.47 * box)
    sample = torch.arange(min(len(stack.noisy), MOST_IMAGES))
    context = fit_context(
        stack.noisy[sample],
        None if stack.optics is None else stack.optics[sample],
        pixel_size_angstrom=stack.pixel_size_angstrom,
        radius_px=radius,
    )
    chosen = torch.randperm(len(stack.noisy), generator=generator)[:kept]
    channels = torch.cat(
        [
            context.channels(stack.noisy[part], None if stack.optics is None else stack.optics[part])
            for part in chosen.split(64)
        ]
    )
    tensors = {
        "noisy": stack.noisy[chosen].half(),
        "clean": stack.clean[chosen].half(),
        "covariance": channels[:, 0].half(),
        "wiener": channels[:, 1].half(),
        "explained": channels[:, 2, box // 2, box // 2].contiguous(),
        "uneven": torch.tensor([context.unevenness]),
        "views": torch.tensor([context.views.share if context.views else 0.0]),
        "radius": torch.tensor([radius]),
    }
    write(tensors, target)
    print(
        f"{target.name} {box} px, {len(stack.noisy)} images of {', '.join(f.stem for f in files)}", flush=True
    )


class StackPool:
    """The newest stacks in memory, and batches of them."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        self._folder, self._rng = folder, rng
        self._stacks: dict[Path, dict[str, Tensor]] = {}
        self._seen: set[Path] = set()

    def __len__(self) -> int:
        return len(self._stacks)

    def refill(self) -> None:
        new = [path for path in sorted(self._folder.glob("train_*.safetensors")) if path not in self._seen]
        # at first as many as there is room for, then a few at a time
        for path in new[-2 if self._stacks else -POOL :]:
            self._stacks[path] = load_file(path)
            self._seen.add(path)
            while len(self._stacks) > POOL:
                del self._stacks[next(iter(self._stacks))]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images with context, and targets."""
        u = self._rng.random()
        box = BOX_PX if u < 0.78 else 64 if u < 0.88 else 192
        stacks = [stack for stack in self._stacks.values() if stack["noisy"].shape[-1] == box]
        if not stacks:
            box, stacks = BOX_PX, [s for s in self._stacks.values() if s["noisy"].shape[-1] == BOX_PX]
        size, parts = {BOX_PX: (BATCH, 8), 64: (4 * BATCH, 8), 192: (BATCH // 2, 4)}[box]
        drawn: list[tuple[Tensor, Tensor]] = []
        for place in self._rng.choice(len(stacks), parts):
            stack = stacks[place]
            members = torch.from_numpy(self._rng.choice(len(stack["noisy"]), size // parts))
            shown, target = shown_and_target(stack, members)
            shown, target = turned(shown, target, int(self._rng.integers(8)))
            for index in range(len(members)):
                self._disturb(shown[index], target[index])
            drawn.append((shown, target))
        shown, target = (torch.cat(values) for values in zip(*drawn, strict=True))
        return shown, target

    def _disturb(self, shown: Tensor, target: Tensor) -> None:
        """Take context away, and mask parts as users do."""
        box, u = shown.shape[-1], self._rng.random()
        if u < NO_CONTEXT:
            shown[1:] = 0
        elif u < NO_CONTEXT + ONE_ESTIMATE:
            shown[1] = shown[3] = 0
        u = self._rng.random()
        if u < MASKED:
            axis = torch.arange(box) - box // 2
            radius = box * self._rng.uniform(0.38, 0.5)
            inside = (axis[:, None].square() + axis.square() <= radius**2).float()
            shown[:3] *= inside
            target *= inside
        elif u < MASKED + STRIP:
            width = int(self._rng.integers(1, box // 4))
            value = float(self._rng.normal()) if self._rng.random() < 0.3 else 0.0
            shown[:3, :, :width] = 0
            shown[0, :, :width] = value
            target[:, :, :width] = value


def shown_and_target(stack: dict[str, Tensor], members: Tensor) -> tuple[Tensor, Tensor]:
    box = stack["noisy"].shape[-1]
    channels = [stack[name][members].float() for name in ("noisy", "covariance", "wiener")]
    inside = circle(box, float(stack["radius"]))
    channels.append(stack["explained"][members, None, None] * inside)
    channels += [stack["uneven"].expand_as(channels[0]), (stack["views"] * inside).expand_as(channels[0])]
    return torch.stack(channels, 1), stack["clean"][members, None].float()


def turned(shown: Tensor, target: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """One of eight ways to turn and mirror; clones, so that they may be changed."""
    both = torch.cat([shown, target], 1)
    both = torch.rot90(both.flip(-1) if way & 4 else both, way & 3, (-2, -1)).contiguous()
    return both[:, :-1].clone(), both[:, -1:].clone()


def new_network() -> ContextAverage:
    """A network of which nothing but the last part learns."""
    network = ContextAverage(**NETWORK).requires_grad_(False)
    network.error_head.requires_grad_(True)
    return network


def train_error(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    network = new_network()
    start = Path(arguments.start)
    if not start.suffix:
        start = WEIGHTS_FOLDER / f"{start}.safetensors"
    network.load_state_dict(load_file(start), strict=False)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(pool: StackPool) -> Tensor:
        """Negative logarithm of the likelihood of the error, up to a constant."""
        shown, target = pool.batch()
        with torch.autocast("cpu", torch.bfloat16):
            image, log_variance = network.with_error(shown.contiguous(memory_format=torch.channels_last))
        squared, log_variance = (image.float() - target).square(), log_variance.float()
        return 0.5 * (log_variance + squared * torch.exp(-log_variance)).mean()

    train_for(
        network,
        lambda step: StackPool(arguments.stacks, np.random.default_rng(step)),
        loss,
        arguments.output,
        Schedule(arguments.minutes, LEARNING_RATE, WARM_UP_STEPS, EMA_DECAY),
        resume=arguments.resume,
        validate=lambda average: [json.dumps(line) for line in validate(average, arguments.stacks)],
    )


def validate(network: nn.Module, folder: Path) -> list[dict[str, float | str]]:
    """Errors over the variance of the clean images, and the true over the predicted squared error."""
    lines: list[dict[str, float | str]] = []
    for path in sorted(folder.glob("held_*.safetensors")):
        stack = load_file(path)
        variance = stack["clean"].float().var(dim=(1, 2)).mean()
        line: dict[str, float | str] = {"stack": path.stem}
        shown, target = shown_and_target(stack, torch.arange(len(stack["noisy"])))
        for name, blind in (("no context", [1, 2, 3, 4, 5]), ("context", [])):
            given = shown.clone()
            given[:, blind] = 0
            parts = []
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                for part in given.split(BATCH):
                    shown_part = part.contiguous(memory_format=torch.channels_last)
                    parts.append(network.with_error(shown_part))  # type: ignore[operator]
            image, log_variance = (torch.cat(values).float() for values in zip(*parts, strict=True))
            squared = (image - target).square()
            line[name] = round(float(squared.mean() / variance), 4)
            line[f"true over predicted, {name}"] = round(float(squared.mean() / log_variance.exp().mean()), 3)
        lines.append(line)
    return lines


def export_weights(arguments: argparse.Namespace) -> None:
    state = torch.load(arguments.run / "last.pt", weights_only=True)
    network = new_network()
    network.load_state_dict(state["average"])
    card = {
        "description": arguments.description,
        "training": {"steps": state["step"], "held_out": list(HELD_OUT)},
    }
    print(save_model(arguments.output, network.half(), "context_average", NETWORK, card))


if __name__ == "__main__":
    main()
