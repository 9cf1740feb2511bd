"""What NT2C's pairs are worth, by what is laid on them as noise: the shipped model trained on with each kind.

    python nt2c_noise.py --micrographs rest.star --twin frame.star --picks FOLDER --particle-diameter A
        --structures FOLDER --particles rest.mrcs --particle-twins frame.mrcs --output DIR [--steps 100]

Structures are simulated with the micrographs' pixel size and CTF, without the specimen among them. Noise is

- simulated, as for the shipped model, with ice in the clean images;
- a Gaussian field measured in empty places of the micrographs, ice and all, the clean images empty about the
  particles: the paper's (`pairs.ice_is_noise`);
- the same with simulated ice in the clean images;
- a field measured in the twins, single frames in which noise drowns everything: noise alone, with simulated
  ice in the clean images. That is the most that a model of the noise can bring, and no user's empty places.

Printed: mean correlation of denoised particles with the twins, whose noise is independent, of all frequencies
and of those beyond 1/100 per Å.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from micrograph_pairs import read_micrographs
from noise_synthesis import empty_windows
from torch import Tensor, nn

from cryohush.core.config.nt2c import SessionConfig
from cryohush.core.config.training import ImagingConfig, OptimisationConfig
from cryohush.core.imaging.normalise import background_statistics, default_radius_px
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.mrc import StackReader
from cryohush.core.jobs.nt2c import session_ctf
from cryohush.core.metrics.independent import independent_correlation
from cryohush.core.models.synthesis import GaussianField
from cryohush.core.models.weights import load_model
from cryohush.core.noise.patches import cut_blocks
from cryohush.core.noise.reweight import reweight
from cryohush.core.noise.synthesis import fit_gaussian_field, pieces_of
from cryohush.core.training.data import SimulatedParticles
from cryohush.core.training.nt2c import simulation_config
from cryohush.core.training.session import schedule, set_learning_rate, update_average

BLOCK_PX, FIT_PIECES, COARSEST_ANGSTROM = 64, 192, 100.0
SIMULATED, ICE_IS_NOISE, ICE_KEPT, PURE = (
    "simulated",
    "of empty places, ice as noise",
    "of empty places, ice kept",
    "of single frames, ice kept",
)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    images, pixel_size = read_micrographs(arguments.micrographs)
    twins, _ = read_micrographs(arguments.twin)
    box = read_stack(arguments.particles).shape[-1]
    empty = torch.cat([blocks for blocks in empty_blocks(images, arguments) if len(blocks)])
    fields = {
        SIMULATED: None,
        ICE_IS_NOISE: noise_field(-empty, box),
        PURE: noise_field(-twins, box),
    }
    fields[ICE_KEPT] = fields[ICE_IS_NOISE]
    particles, other = read_stack(arguments.particles), read_stack(arguments.particle_twins)
    table = arguments.output / "ctf.npy"
    np.save(table, session_ctf(arguments.micrographs, box, pixel_size))

    scores: dict[str, dict[str, Tensor]] = {}
    network = load_model("general").module
    scores["general"] = score(network, particles, other, pixel_size)
    for kind in (SIMULATED, ICE_IS_NOISE, ICE_KEPT, PURE):
        data = simulated(kind, table, box, pixel_size, arguments)
        trained = train_on(network, data, fields[kind], arguments)
        scores[kind] = score(trained, particles, other, pixel_size)
        print(
            kind, {name: round(float(values.mean()), 4) for name, values in scores[kind].items()}, flush=True
        )
    report(scores, arguments.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The shipped model trained on with four kinds of noise.")
    parser.add_argument("--micrographs", type=Path, required=True, help="micrographs (.star)")
    parser.add_argument("--twin", type=Path, required=True, help="single frames of the same exposures")
    parser.add_argument("--picks", type=Path, required=True, help="folder of coordinate files")
    parser.add_argument("--particle-diameter", type=float, required=True, metavar="A", help="Å")
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB or mmCIF files")
    parser.add_argument("--particles", type=Path, required=True, help="stack to denoise (.mrcs)")
    parser.add_argument("--particle-twins", type=Path, required=True, help="the same boxes of the frames")
    parser.add_argument("--projections", type=int, default=64, help="of each structure (default: 64)")
    parser.add_argument("--steps", type=int, default=100, help="default: 100")
    parser.add_argument("--batch-size", type=int, default=12, help="default: 12")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="default: 3e-4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def read_stack(path: Path) -> Tensor:
    with StackReader(path) as reader:
        return torch.from_numpy(reader.read(range(reader.shape[0])))


def empty_blocks(images: Tensor, arguments: argparse.Namespace) -> list[Tensor]:
    """Blocks `(n, y, x)` of the empty places of each micrograph."""
    table = MicrographSet.read(arguments.micrographs)
    return [
        cut_blocks(
            image,
            empty_windows(table, index, arguments.picks, arguments.particle_diameter, BLOCK_PX),
            BLOCK_PX,
        )
        for index, image in enumerate(images)
    ]


def noise_field(blocks: Tensor, box_px: int) -> GaussianField:
    """Gaussian field of the size of the box, measured in pieces of blocks."""
    draws = torch.Generator().manual_seed(5)
    measured = fit_gaussian_field(pieces_of(blocks, BLOCK_PX, FIT_PIECES, draws), draws)
    field = GaussianField(box_px, BLOCK_PX)
    field.load_state_dict(measured.state_dict())
    return field


def simulated(
    kind: str, ctf_table: Path, box_px: int, pixel_size: float, arguments: argparse.Namespace
) -> SimulatedParticles:
    """Particles as the session would have recorded them, with or without ice in the clean images."""
    imaging = ImagingConfig(snr=(0.02, 0.2), no_ctf_probability=0.0, defocus_scale=(0.9, 1.1))
    if kind == ICE_IS_NOISE:
        imaging = imaging.model_copy(update={"ice_share": 0.0, "background_share": 0.0})
    session = SessionConfig(
        micrographs=arguments.micrographs,
        structures=arguments.structures,
        box_px=box_px,
        volumes_per_structure=1,
        projections_per_volume=arguments.projections,
        imaging=imaging,
    )
    return SimulatedParticles(
        simulation_config(session, (ctf_table,), pixel_size),
        held_out=False,
        seed=3,
        cache=arguments.output / "projections.safetensors",
        log=print,
    )


def train_on(
    network: nn.Module, data: SimulatedParticles, field: GaussianField | None, arguments: argparse.Namespace
) -> nn.Module:
    """A copy of the network, trained on; the moving average of its weights."""
    network = copy.deepcopy(network).requires_grad_(True).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-4, betas=(0.9, 0.99))
    options = OptimisationConfig(
        steps=arguments.steps, learning_rate=arguments.learning_rate, warmup_steps=arguments.steps // 4
    )
    draws = torch.Generator().manual_seed(0)
    for step in range(arguments.steps):
        set_learning_rate(optimiser, options.learning_rate * schedule(step, options))
        noisy, clean, _ = data.batch(step, arguments.batch_size)
        if field is not None:
            drawn = field.draw(len(clean), draws)
            pair = torch.stack(reweight(clean[:, 0], drawn, noisy[:, 0]))
            mean, std = background_statistics(pair[0], default_radius_px((pair.shape[-2], pair.shape[-1])))
            noisy, clean = ((pair - mean[:, None, None]) / std[:, None, None]).unsqueeze(2)
        with torch.autocast("cpu", torch.bfloat16):
            estimate = network(noisy.contiguous(memory_format=torch.channels_last))
        loss = (estimate.float() - clean).square().mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        update_average(average, network, step, 0.99)
    return average.eval()


@torch.inference_mode()
def score(
    network: nn.Module, particles: Tensor, twins: Tensor, pixel_size_angstrom: float
) -> dict[str, Tensor]:
    """Correlation of each denoised particle with its twin `(n,)`, by band."""
    mean, std = background_statistics(
        particles, default_radius_px((particles.shape[-2], particles.shape[-1]))
    )
    images = ((particles - mean[:, None, None]) / std[:, None, None]).unsqueeze(1)
    with torch.autocast("cpu", torch.bfloat16):
        parts = [network(part.contiguous(memory_format=torch.channels_last)) for part in images.split(32)]
    denoised = torch.cat(parts)[:, 0].float()
    return {
        name: independent_correlation(
            denoised, twins, pixel_size_angstrom=pixel_size_angstrom, coarsest_angstrom=coarsest
        )
        for name, coarsest in (("all", None), ("fine", COARSEST_ANGSTROM))
    }


def report(scores: dict[str, dict[str, Tensor]], output: Path) -> None:
    print(f"| trained on with noise | all | gain | beyond 1/{COARSEST_ANGSTROM:g} per Å | gain |")
    print("|---|---|---|---|---|")
    record = {}
    for kind, found in scores.items():
        cells, record[kind] = [], {}
        for band, values in found.items():
            gain = values - scores["general"][band]
            error = float(gain.std() / len(gain) ** 0.5)
            cells += [f"{float(values.mean()):.4f}", f"{float(gain.mean()):+.4f} ± {error:.4f}"]
            record[kind][band] = {"score": float(values.mean()), "gain": float(gain.mean()), "error": error}
        print(f"| {kind} | " + " | ".join(cells) + " |")
    (output / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
