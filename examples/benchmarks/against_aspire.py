"""The covariance Wiener filter of cryohush beside that of ASPIRE, on the same simulated particles.

    python against_aspire.py --aspire-python PYTHON --structure FILE --ctf-table ctf.npy --output DIR

PYTHON belongs to an environment with aspire (GPL-3) 0.14. Particles of one structure are simulated at SNR
0.05 without CTF, and with CTFs of the table in groups of like defocus; both programs get the same images,
groups and noise variance, and the same number of threads. Both are judged by the mean squared error over
the variance of the clean images: of the images without CTF (restored), and of these seen through each
image's own CTF (kept). Times are those of estimating and filtering, without loading programs. Writes
against_aspire.md and .json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import run_measured
from torch import Tensor

from cryohush.core.classical.covariance import estimate_covariance, estimate_covariance_through_ctf
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.imaging.ctf import ctf, defocus_groups, read_ctf_table
from cryohush.core.imaging.filters import apply_transfer
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.structure import potential_map, read_structure

RUNNER = Path(__file__).parent / "aspire_runner.py"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    structure = read_structure(arguments.structure)
    pixel_size = 2 * structure.radius_angstrom / (0.65 * arguments.box)
    projector = Projector(potential_map(structure, arguments.box, pixel_size, 8 * pixel_size**2))
    views = torch.fft.irfft2(projector.slices(random_rotations(arguments.images, generator)))
    table = read_ctf_table(arguments.ctf_table)
    optics = table[torch.randint(len(table), (len(views),), generator=generator)]
    group, common = defocus_groups(optics, arguments.groups)
    own = ctf(optics, torch.full((len(optics),), pixel_size), arguments.box)
    shared = ctf(common, torch.full((len(common),), pixel_size), arguments.box)
    rows = compare("no CTF", views, None, None, None, arguments, generator)
    rows += compare(f"CTF, {arguments.groups} groups", views, own, shared, group, arguments, generator)
    lines = [
        f"{structure.name}, {len(views)} images of {arguments.box} px, SNR {arguments.snr:g}, "
        f"{arguments.threads} threads.",
        "",
        "| images | program | NMSE kept | NMSE restored | images/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['images']} | {row['program']} | {row['kept']:.4f} | {row['restored']:.4f} "
        f"| {row['rate']:.0f} |"
        for row in rows
    ]
    text = "\n".join(lines) + "\n"
    (arguments.output / "against_aspire.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "against_aspire.md").write_text(text, encoding="utf-8")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Covariance Wiener filter beside ASPIRE's.")
    parser.add_argument("--aspire-python", required=True, help="python of an environment with aspire 0.14")
    parser.add_argument("--structure", type=Path, required=True, help="PDB or mmCIF file")
    parser.add_argument("--ctf-table", type=Path, required=True, help=".npy of real CTF parameters")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def compare(
    name: str,
    views: Tensor,
    own: Tensor | None,
    shared: Tensor | None,
    group: Tensor | None,
    arguments: argparse.Namespace,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """Both programs on `views` with noise, seen through their `own` CTF if there is one."""
    seen = views if own is None else apply_transfer(views, own)
    scale = seen.var((1, 2)).mean().sqrt()
    clean, seen = views / scale, seen / scale
    variance = 1 / arguments.snr
    noisy = seen + variance**0.5 * torch.randn(seen.shape, generator=generator)
    rows = []
    for program, run in (("cryohush", run_here), ("ASPIRE", run_aspire)):
        restored, seconds = run(noisy, variance, shared, group, arguments)
        kept = restored if own is None else apply_transfer(restored, own)
        rows.append(
            {
                "images": name,
                "program": program,
                "kept": normalised_error(kept, seen),
                "restored": normalised_error(restored, clean),
                "rate": len(noisy) / seconds,
            }
        )
    return rows


def normalised_error(images: Tensor, clean: Tensor) -> float:
    return float((images - clean).square().mean() / clean.var((1, 2), correction=0).mean())


def run_here(
    noisy: Tensor, variance: float, shared: Tensor | None, group: Tensor | None, arguments: argparse.Namespace
) -> tuple[Tensor, float]:
    basis = FourierBesselBasis(arguments.box)
    begin = time.perf_counter()
    if shared is None or group is None:
        restored = estimate_covariance(noisy, variance, basis).denoise(noisy, variance)
    else:
        covariance = estimate_covariance_through_ctf(noisy, variance, basis, shared, group)
        restored = covariance.restore(noisy, variance, shared, group)
    return restored, time.perf_counter() - begin


def run_aspire(
    noisy: Tensor, variance: float, shared: Tensor | None, group: Tensor | None, arguments: argparse.Namespace
) -> tuple[Tensor, float]:
    given = {"images": noisy.numpy(), "noise_variance": np.float64(variance)}
    if shared is not None and group is not None:
        given |= {"transfer": shared.numpy(), "group": group.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npy"
        np.savez(source, **given)
        command = [arguments.aspire_python, str(RUNNER), str(source), str(target)]
        said = json.loads(run_measured(command, arguments.threads).output.splitlines()[-1])
        return torch.from_numpy(np.load(target)), said["estimate_s"] + said["filter_s"]


if __name__ == "__main__":
    main()
