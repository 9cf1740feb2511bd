"""What a stack makes of images that are unlike the rest of it, or that hold nothing.

    python hallucination.py --structures PDB PDB --ctf-tables TABLE.npy ... --output DIR
        [--model general] [--map]

1,000 simulated particles with the CTFs of a real session, 128 px, at two signal-to-noise ratios (variance of
a particle's image over that of the noise, over the whole box), denoised image by image and with what their
stack says of them, or with a map of the particle (`--map`):

- a tenth of them are of another structure: mean squared error of both kinds over the variance of the truth;
- a fifth of them lack a domain, what lies beyond a plane that cuts off 15 % of the first structure's mass at
  one end. Denoised images are explained, by least squares over the circle, by the rest of the particle and by
  the domain, as both are seen in the true pose. The factor of the domain is 1 where it is shown as it is;
  where it is missing, 0 is honest, and 1 would be a domain like that of all others.

And pure white noise: how much of it is left, how alike two halves of the images become, and what comes out
when its images are aligned to a picture and averaged ("Einstein from noise"): the correlation of the average
with that picture, a projection of the first structure. Writes hallucination.json to DIR.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from classification import aligned
from simulated_stacks import StackRanges, simulate_stack
from stack_context import BOX_PX, channels_of, run
from torch import Tensor

from cryohush.core.context.stack_context import circle, fit_context, to_working_grid
from cryohush.core.context.stack_map import unasked
from cryohush.core.imaging.ctf import CtfParameters, ctf, read_ctf_table
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.resample import shift_phases
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.models.weights import load_model
from cryohush.core.simulation.image_formation import ProjectionBank, make_projection_bank

SNRS = (0.1, 0.03)
SHAPE = (BOX_PX, BOX_PX)
DIAMETER_SHARE = 0.55
#: share of the mass of the domain, and every how many images lack it
DOMAIN, EVERY = 0.15, 5
TURNS, REACH_PX = 72, 6
_OF_VIEWS = ("images", "pixel_size_angstrom", "diameter_px", "volume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--structures", type=Path, nargs=2, required=True, metavar="PDB")
    parser.add_argument("--ctf-tables", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="general")
    parser.add_argument("--map", action="store_true", help="let a map of the particle take part")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    tables = [read_ctf_table(path) for path in arguments.ctf_tables]
    network = load_model(arguments.model).module.bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with_map = unasked if arguments.map else None
    volumes = banks(arguments.structures)
    result: dict[str, Any] = {"pure noise": noise_alone(network, volumes[0].images[0].float(), with_map)}
    for snr in SNRS:
        result[f"a tenth of another structure, SNR {snr:g}"] = minority(
            network, volumes, tables, snr, with_map
        )
        result[f"a fifth without a domain, SNR {snr:g}"] = missing_domain(
            network, arguments.structures[0], tables[0], snr, with_map
        )
    text = json.dumps(result, indent=1)
    print(text)
    (arguments.output / "hallucination.json").write_text(text + "\n", encoding="utf-8")


def banks(structures: list[Path]) -> list[ProjectionBank]:
    bank = make_projection_bank(
        structures,
        box_px=BOX_PX,
        volumes_per_structure=1,
        projections_per_volume=256,
        diameter_share=(DIAMETER_SHARE, DIAMETER_SHARE),
        pixel_size_angstrom=(0.8, 6.0),
        generator=torch.Generator().manual_seed(1),
    )
    return [
        ProjectionBank(*(getattr(bank, name)[bank.volume == number] for name in _OF_VIEWS))
        for number in (0, 1)
    ]


def by_each(
    network: Any,
    images: Tensor,
    optics: CtfParameters | None,
    pixel_size_angstrom: float,
    with_map: Callable[[], None] | None,
) -> dict[str, Tensor]:
    """Images denoised with what their stack says, and one by one."""
    radius = default_radius_px(SHAPE)
    context = fit_context(
        images, optics, pixel_size_angstrom=pixel_size_angstrom, radius_px=radius, with_map=with_map
    )
    return {
        "context": run(network, images, channels_of(context, images, optics)),
        "no context": run(network, images, None),
    }


def noise_alone(
    network: Any, picture: Tensor, with_map: Callable[[], None] | None, n: int = 500
) -> dict[str, float]:
    """Share of the variance of white noise that is left, how alike images become, and Einstein from noise."""
    noise = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(2))
    kept = {"correlation of aligned noise with a picture, raw": from_noise(noise, picture)}
    for name, out in by_each(network, noise, None, 2.0, with_map).items():
        kept[f"variance kept, {name}"] = float(out.var())
        mean = out.mean(0)
        expected = out.var(0).mean() / n
        kept[f"power of the mean image over that of independent ones, {name}"] = float(
            mean.var() / expected.clamp_min(1e-12)
        )
        kept[f"correlation of aligned noise with a picture, {name}"] = from_noise(out, picture)
    return kept


def from_noise(images: Tensor, picture: Tensor) -> float:
    """Correlation of a picture with the average of `(n, y, x)` images that were aligned to it."""
    images, picture = to_working_grid(images), to_working_grid(picture[None])
    side = images.shape[-1]
    turns = torch.arange(TURNS) * (360.0 / TURNS)
    turned = aligned(picture.expand(TURNS, -1, -1), torch.zeros(TURNS, 2), turns)
    turned = torch.fft.rfft2(turned).conj()
    axis = torch.fft.fftfreq(side, 1 / side)
    near = torch.hypot(axis[:, None], axis) <= REACH_PX
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)[near]
    total = torch.zeros(side, side)
    for some in torch.split(images, 50):
        product = torch.fft.rfft2(some)[:, None] * turned
        fit = torch.fft.irfft2(product, s=(side, side))[..., near].flatten(1).argmax(1)
        turn, place = fit // len(places), fit % len(places)
        total += aligned(some, -places[place], -turns[turn]).sum(0)
    inside = circle(side, default_radius_px((side, side))) > 0.5
    return float(torch.corrcoef(torch.stack([total[inside], picture[0][inside]]))[0, 1])


def minority(
    network: Any,
    volumes: list[ProjectionBank],
    tables: list[CtfParameters],
    snr: float,
    with_map: Callable[[], None] | None,
    n: int = 1000,
) -> dict[str, float]:
    """NMSE of nine tenths of a stack and of the tenth that is another structure, with and without context."""
    ranges = StackRanges(
        snr=(snr, snr),
        crowded_probability=0.0,
        other_share=0.0,
        empty_share=0.0,
        no_ctf_probability=0.0,
        unknown_ctf_probability=0.0,
    )
    parts = [
        simulate_stack([volume], tables, ranges, torch.Generator().manual_seed(5), BOX_PX, count)
        for volume, count in zip(volumes, (9 * n // 10, n // 10), strict=True)
    ]
    noisy, clean = (torch.cat([getattr(part, name) for part in parts]) for name in ("noisy", "clean"))
    first, second = (part.optics for part in parts)
    assert first is not None
    assert second is not None
    optics = CtfParameters.joined([first, second])
    out = by_each(network, noisy, optics, parts[0].pixel_size_angstrom, with_map)
    found = {}
    for kind, members in (("majority", slice(0, len(first))), ("minority", slice(len(first), n))):
        variance = clean[members].var(dim=(1, 2)).mean()
        for name, images in out.items():
            error = (images[members] - clean[members]).square().mean() / variance
            found[f"NMSE of the {kind}, {name}"] = float(error)
    return found


def missing_domain(
    network: Any,
    path: Path,
    table: CtfParameters,
    snr: float,
    with_map: Callable[[], None] | None,
    n: int = 1000,
) -> dict[str, float]:
    """How much of a domain denoised images show, of those that have it and of the fifth that lack it."""
    generator = torch.Generator().manual_seed(3)
    structure = read_structure(path)
    pixel_size = 2 * structure.radius_angstrom / (DIAMETER_SHARE * BOX_PX)
    volume = potential_map(structure, BOX_PX, pixel_size, 8 * pixel_size**2 + 60)
    rotations = random_rotations(n, generator)
    optics = table[torch.randint(len(table), (n,), generator=generator)]
    transfer = ctf(optics, torch.full((n,), pixel_size), BOX_PX)
    transfer = transfer * shift_phases(2 * torch.randn(n, 2, generator=generator), SHAPE)
    whole, domain = (
        torch.fft.irfft2(torch.fft.rfft2(Projector(part)(rotations)) * transfer, s=SHAPE)
        for part in (volume, volume * at_one_end(volume))
    )
    scale = (snr / whole.var(dim=(1, 2)).median()).sqrt()
    lacks = torch.arange(n) % EVERY == 0
    noise = torch.randn(n, *SHAPE, generator=generator)
    noisy, _, std = normalise(
        scale * (whole - lacks[:, None, None] * domain) + noise, default_radius_px(SHAPE)
    )
    rest, domain = (scale / std[:, None, None] * part for part in (whole - domain, domain))
    found = {}
    for name, images in by_each(network, noisy, optics, pixel_size, with_map).items():
        for kind, members in (("have", ~lacks), ("lack", lacks)):
            found[f"of the domain in images that {kind} it, {name}"] = share_of_second(
                images[members], rest[members], domain[members]
            )
    return found


def at_one_end(volume: Tensor) -> Tensor:
    """`(z, y, x)` 0 to 1: beyond a plane, across the longest axis, that cuts off 15 % of the mass."""
    side = volume.shape[-1]
    axis = torch.arange(side) - side / 2
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    mass = volume.clamp_min(0).flatten()
    mass = mass / mass.sum()
    places = places - mass @ places
    along = places @ torch.linalg.eigh((places * mass[:, None]).T @ places).eigenvectors[:, -1]
    order = along.argsort(descending=True)
    height = along[order[int((mass[order].cumsum(0) < DOMAIN).sum())]]
    return torch.sigmoid((along - height) / 0.5).view(volume.shape)


def share_of_second(images: Tensor, first: Tensor, second: Tensor) -> float:
    """The second factor where images are explained, within the circle, by two others that are given."""
    inside = circle(BOX_PX, default_radius_px(SHAPE)) > 0.5
    shown, *parts = (part[:, inside] for part in (images, first, second))
    shown, *parts = (part - part.mean(1, keepdim=True) for part in (shown, *parts))
    both = torch.stack([part.flatten() for part in parts], 1).double()
    return float(torch.linalg.lstsq(both, shown.flatten().double()[:, None]).solution[1])


if __name__ == "__main__":
    main()
