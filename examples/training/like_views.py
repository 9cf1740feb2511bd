"""Train the networks of like views and of maps, which serve `general` where images predict each other.

    python like_views.py projections --structures FOLDER --output BANK
    python like_views.py stacks --projections BANK --ctf-tables TABLE.npy ... --output STACKS [--number 200]
        [--map]
    python like_views.py train --stacks STACKS --output RUN --minutes M [--resume]
        [--start like_views --rate 6e-4]
    python like_views.py export --run RUN --output like_views.safetensors

`projections`: many views, on the working grid, of deposited complexes and of symmetric assemblies of pieces
of them. `stacks`: simulated sessions, some of their images, and what their like views and covariance say of
each. `train` may read them while they are made; the learning rate falls to 0 within the given time. All three
go on where they were stopped. What is drawn is a function of the numbers of the files.

The structures that are held out of training are those of the preset `general`, and two conformations of an
ion channel on which the papers' tables are made.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from stack_aware import HELD_OUT, assembly, read_bank, write
from timed_training import Schedule, train_for
from torch import Tensor

from cryohush.core.context.like_views import LikeViews
from cryohush.core.context.prediction import fitted
from cryohush.core.context.stack_context import FITTED, WORKING_BOX_PX, circle, fit_context
from cryohush.core.context.stack_map import of_some
from cryohush.core.imaging.ctf import CtfParameters, read_ctf_table
from cryohush.core.imaging.noise import uniform
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.models import VIEW_NETWORKS
from cryohush.core.models.view_unet import ViewUNet
from cryohush.core.models.weights import load_model, save_model
from cryohush.core.spread import evenly_spread

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from simulated_stacks import PLAIN, StackRanges, simulate_stack

BOX_PX = WORKING_BOX_PX
VIEWS, ASSEMBLIES = 2048, 50
SNR, IMAGES, KEPT_OF_STACK = (0.015, 0.8), (300, 2048), 640
POOL, BATCH, STACKS_OF_BATCH = 70, 32, 8
LEARNING_RATE, WARM_UP_STEPS, EMA_DECAY = 1.2e-3, 200, 0.998
#: normalised squared error of the linear prediction; stacks with more teach nothing
LARGEST_ERROR = 0.7
#: what a stack has beside white noise, and how often
SOMETIMES: tuple[tuple[float, dict[str, float]], ...] = (
    (0.6, {"noise_tilt": 0.3}),
    (0.4, {"ice_share": 0.1, "background_share": 0.05}),
    (0.2, {"crowded_probability": 1.0}),
    (0.3, {"other_share": 0.3, "empty_share": 0.2}),
    (0.3, {"envelope_b_factor": 400.0}),
    (0.05, {"unknown_ctf_probability": 1.0}),
    (0.35, {"no_ctf_probability": 1.0}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the network of like views.")
    commands = parser.add_subparsers(dest="command", required=True)
    projections = commands.add_parser("projections")
    projections.add_argument("--structures", type=Path, required=True)
    stacks = commands.add_parser("stacks")
    stacks.add_argument("--projections", type=Path, required=True)
    stacks.add_argument("--ctf-tables", type=Path, nargs="+", required=True)
    stacks.add_argument("--number", type=int, default=200, help="of stacks, 50 MB each")
    stacks.add_argument("--first", type=int, default=0, help="number of the first, for several processes")
    stacks.add_argument("--map", action="store_true", help="means of a map in place of like views")
    train = commands.add_parser("train")
    train.add_argument("--start", help="weights to begin with: a file or a shipped network")
    train.add_argument("--stacks", type=Path, required=True)
    train.add_argument("--minutes", type=float, required=True)
    train.add_argument("--rate", type=float, default=LEARNING_RATE)
    train.add_argument("--resume", action="store_true")
    export = commands.add_parser("export")
    export.add_argument("--run", type=Path, required=True)
    for command in (projections, stacks, train, export):
        command.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command != "export":
        arguments.output.mkdir(parents=True, exist_ok=True)
    commands_by_name = {
        "projections": make_projections,
        "stacks": make_stacks,
        "train": train_network,
        "export": export_weights,
    }
    commands_by_name[arguments.command](arguments)


def make_projections(arguments: argparse.Namespace) -> None:
    held_out = (*HELD_OUT, "8eow", "8ep1")
    files = [
        path
        for path in sorted(arguments.structures.iterdir())
        if path.name.endswith(".gz") and path.name.split(".")[0] not in held_out
    ]
    jobs = [(100 * round_ + number, path, False) for round_ in (0, 2) for number, path in enumerate(files)]
    jobs += [(100 + number, files[7 * number % len(files)], True) for number in range(ASSEMBLIES)]
    for place in np.random.default_rng(1).permutation(len(jobs)):
        number, path, symmetric = jobs[place]
        target = arguments.output / f"train_{number:04d}.safetensors"
        if target.exists():
            continue
        seed = number + 31
        structure = assembly(path, np.random.default_rng(seed)) if symmetric else read_structure(path)
        generator = torch.Generator().manual_seed(seed)
        share = uniform(1, (0.4, 0.75), generator).item()
        pixel_size = 2 * structure.radius_angstrom / (share * BOX_PX)
        b_factor = 8 * pixel_size**2 + uniform(1, (0, 120), generator).item()
        projector = Projector(potential_map(structure, BOX_PX, pixel_size, b_factor))
        images = torch.cat([projector(random_rotations(32, generator)) for _ in range(VIEWS // 32)])
        tensors = {
            "images": (images / images.std(dim=(1, 2), keepdim=True)).half(),
            "pixel_size_angstrom": torch.tensor([pixel_size]),
            "diameter_px": torch.tensor([share * BOX_PX]),
        }
        write(tensors, target)
        print(f"{target.name} {structure.name}, {pixel_size:.2f} Å", flush=True)


def make_stacks(arguments: argparse.Namespace) -> None:
    tables = [read_ctf_table(path) for path in arguments.ctf_tables]
    files = sorted(arguments.projections.glob("train_*.safetensors"))
    for number in range(arguments.first, arguments.first + arguments.number):
        target = arguments.output / f"train_{number:06d}.safetensors"
        if target.exists():
            continue
        rng = np.random.default_rng(number)
        chosen = [files[place] for place in rng.permutation(len(files))[:2]]
        snr = math.exp(rng.uniform(*np.log(SNR)))
        ranges = {**PLAIN, "no_ctf_probability": 0.0, "snr": (snr, snr)}
        for probability, differs in SOMETIMES:
            if rng.random() < probability:
                ranges |= differs
        n = IMAGES[1] if rng.random() < 0.1 else round(math.exp(rng.uniform(*np.log(IMAGES))))
        make_stack(chosen, tables, StackRanges(**ranges), number, target, n, of_map=arguments.map)


def make_stack(
    files: list[Path],
    tables: list[CtfParameters],
    ranges: StackRanges,
    number: int,
    target: Path,
    n: int,
    *,
    of_map: bool,
) -> None:
    """Simulate a stack and write some of its images with all that the network sees of them."""
    generator = torch.Generator().manual_seed(9000 + number)
    banks = [read_bank(path) for path in files]
    stack = simulate_stack(banks, tables, ranges, generator, BOX_PX, n)
    radius = default_radius_px((BOX_PX, BOX_PX)) * float(uniform(1, (0.9, 1.15), generator))
    radius = min(radius, 0.47 * BOX_PX)
    noisy, mean, std = normalise(stack.noisy, radius)
    clean = (stack.clean - mean[:, None, None]) / std[:, None, None]
    context = fit_context(
        noisy,
        stack.optics,
        pixel_size_angstrom=stack.pixel_size_angstrom,
        radius_px=radius,
        with_views=False,
    )
    if of_map:
        context = context.of_map(noisy, stack.optics, torch.arange(n))
    else:
        sample, group = context.sample(noisy, stack.optics)
        rows = torch.from_numpy(evenly_spread(n, FITTED))
        views = LikeViews(**context.of_prediction, sample=sample, group=group)
        context = replace(context, views=fitted(views, sample[rows], group[rows]))
    views = context.views
    assert views is not None
    own, group = context.own_ctf(stack.optics, n)
    chosen = torch.randperm(n, generator=generator)[:KEPT_OF_STACK]
    seen, middle = [], []
    for some in chosen.split(64):
        ctfs, transform = of_some(own, some), torch.fft.rfft2(noisy[some])
        to_middle = context.to_map(views, transform, ctfs, group[some])
        seen.append(context.view_channels(views, transform * to_middle, ctfs, group[some]))
        middle.append(torch.fft.irfft2(torch.fft.rfft2(clean[some]) * to_middle, s=clean.shape[-2:]))
    scale = context.view_scale(views) * context.noise_variance**0.5
    tensors = {
        "shown": torch.cat(seen).half(),
        "clean": (torch.cat(middle) / scale).half(),
        "radius": torch.tensor([radius]),
    }
    write(tensors, target)
    print(f"{target.name} {n} images of {', '.join(file.stem for file in files)}", flush=True)


class Stacks:
    """The newest stacks in memory, and batches of them."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        self._folder, self._rng, self._seen = folder, rng, set[Path]()
        self._stacks: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._stacks)

    def refill(self) -> None:
        for path in sorted(self._folder.glob("train_*.safetensors")):
            if path in self._seen:
                continue
            self._seen.add(path)
            stack = load_file(path)
            inside = circle(BOX_PX, float(stack["radius"]))
            clean = stack["clean"].float() * inside
            power = clean.square().mean()
            error = (stack["shown"][:, 1].float() * inside - clean).square().mean() / power
            if float(error) < LARGEST_ERROR:
                weight = 1 / (power * error.clamp_min(0.01))
                self._stacks = [*self._stacks, {**stack, "inside": inside, "weight": weight}][-POOL:]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is shown, targets, and weights of pixels: each stack's error relative to the linear one."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for place in self._rng.choice(len(self._stacks), STACKS_OF_BATCH):
            stack = self._stacks[place]
            members = torch.from_numpy(self._rng.choice(len(stack["clean"]), BATCH // STACKS_OF_BATCH))
            both = torch.cat([stack["shown"][members], stack["clean"][members, None]], 1).float()
            way = int(self._rng.integers(8))
            both = torch.rot90(both.flip(-1) if way & 4 else both, way & 3, (-2, -1))
            weight = (stack["weight"] * stack["inside"]).expand(len(members), 1, -1, -1)
            parts.append((both[:, :-1], both[:, -1:], weight))
        shown, target, weights = (torch.cat(values) for values in zip(*parts, strict=True))
        return shown.contiguous(memory_format=torch.channels_last), target, weights


def train_network(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    network = ViewUNet()
    if arguments.start:
        network.load_state_dict(load_model(arguments.start, VIEW_NETWORKS).module.state_dict())
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(stacks: Stacks) -> Tensor:
        """Error relative to that of the linear prediction."""
        shown, target, weights = stacks.batch()
        with torch.autocast("cpu", torch.bfloat16):
            image = network(shown)
        return ((image.float() - target).square() * weights).mean((1, 2, 3)).clamp_max(20.0).mean()

    train_for(
        network,
        lambda step: Stacks(arguments.stacks, np.random.default_rng(step)),
        loss,
        arguments.output,
        Schedule(arguments.minutes, arguments.rate, WARM_UP_STEPS, EMA_DECAY, STACKS_OF_BATCH),
        resume=arguments.resume,
    )


def export_weights(arguments: argparse.Namespace) -> None:
    state = torch.load(arguments.run / "last.pt", weights_only=True)
    network = ViewUNet()
    network.load_state_dict(state["average"])
    card = {
        "description": "Serves general where the images of a stack predict each other.",
        "training": {"steps": state["step"], "held_out": list(HELD_OUT)},
    }
    print(save_model(arguments.output, network.half(), "view_unet", {}, card))


if __name__ == "__main__":
    main()
