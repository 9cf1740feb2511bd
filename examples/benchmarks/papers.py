"""The published methods side by side: each is trained, judged beside classical ones and limits, and tabled.

    python papers.py --structures DIR --output DIR [--size tiny|small|full] [--tables NAME ...]
        [--rows TEXT ...] [--seeds 1 2 3] [--steps N] [--set KEY=VALUE ...] [--noise-blocks noise.mrcs]
        [--molecule NAME [NAME]]

Needs `pip install 'cryohush[train,evaluate]'`; rows of BM3D are left out, and named, without the extra
`baselines`. DIR holds the atomic models that `paper_tables.py` names, or `--molecule`: two conformations of
the same atoms for the tables of conformations, one structure for the others. `full` is the papers' 128 px
with the presets as they are, for a GPU; `small` takes 64 px and 1,000 updates of each network; `tiny`
networks with half of every layer's channels and 400 updates, minutes for a row on one core. A row that is
done is not done again, and one that was interrupted goes on. Each leaves a JSON file; the tables, one file
each and all in papers.md, are made of these. picture.png in a table's folder shows some test images through
each network.

A table has one test set, or several: images of a known molecule, in all its conformations, in poses of a
grid, with white noise or pieces of real noise (`--noise-blocks`, an MRC stack of `cryohush extract-noise`),
without CTF. Training shows other poses. SNRs are those of a box of 128 px; a smaller box has the same dose,
so that its ratio per pixel is higher. All networks of a table are updated as often; a critic's turns come
on top. "no critic" is the same loop, optimiser and loss without the critic: what a critic adds is the
difference from it. MSE, PSNR and SSIM take each clean image's span as 0 to 1, outputs as they come; "SSIM,
papers'" is what the papers' code computed, which flatters. Affine NMSE is blind to a wrong contrast. CWF is
the covariance Wiener filter of the noisy stack; a row "beats CWF" when both its MSE and its affine NMSE are
lower.

"efficiency" is the way from the best linear filter to the Bayes limit, (linear - row) / (linear - limit) in
log NMSE, the limit being that of the grid or the Cramér-Rao bound of continuous angles, whichever is
larger. Where noise is real, both limits are those of Gaussian noise of the same spectrum. "told apart": of
60 images of the first and the last conformation in one view, how many fall into the right group of two
(Isomap, k-means), mean over views, the same for all rows; chance is about 33, and the line above the table
says what whoever knows the view and both maps would get. "noise: power" is the variance of what comes out
of pure noise over that of denoised particles, "alike" the correlation between such outputs, "FRC" that of
averages of two halves of them at low frequency: all are 0 where nothing is made up. "fine detail" is the
power that images have at the finer half of the frequencies over that of the clean ones, and its correlation
with theirs: sharp is not yet right. "structural noise left" is how much of the density beside the particle an
image shows, in terms of how much of the particle. "map" is where the FSC
with the truth falls below 0.5 and below 0.143, of the map of the images in their true poses. BM3D and the
dictionary are judged on an eighth of the images, the Bayes limit on a quarter. `tiny` trains a part of the
contaminated rows.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pairs import file_name
from paper_images import Noise, split_noise
from paper_rows import (
    CWF,
    LIMIT,
    LINEAR,
    NOISY,
    Bench,
    missing_baselines,
    reference_rows,
    shown_images,
    trained_row,
)
from paper_tables import SIZES, TABLES, Table

from cryohush.core.inference.devices import keep_freed_memory
from cryohush.core.io.files import write_text, writing
from cryohush.core.report.figures import Row, draw_rows, grey_range

Result = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    folder = arguments.output / arguments.size
    noise = split_noise(arguments.noise_blocks, folder) if arguments.noise_blocks else None
    for name in arguments.tables:
        table = TABLES[name]
        if arguments.molecule:
            table = replace(table, molecule=tuple(arguments.molecule))
        run(table, arguments, folder / name, noise)
        write(folder)
    print((folder / "papers.md").read_text(encoding="utf-8"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The published methods, trained and judged side by side.")
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB or mmCIF files")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="NAME")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="TEXT",
        help="rows whose names contain one of these (default: all)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="a run for each")
    parser.add_argument("--steps", type=int, help="updates of each network, instead of the size's number")
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="entries to change in the presets, e.g. adversarial.weight=0.1; give another --output",
    )
    parser.add_argument(
        "--molecule",
        nargs="+",
        metavar="NAME",
        help="files in --structures, without extension, instead of the tables' own; give another --output",
    )
    parser.add_argument("--noise-blocks", type=Path, help="MRC stack of real noise, for tables that need it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if arguments.noise_blocks is None:
        needed = [name for name in arguments.tables if any(case.real_noise for case in TABLES[name].cases)]
        arguments.tables = [name for name in arguments.tables if name not in needed]
        if needed:
            print(f"left out without --noise-blocks: {', '.join(needed)}")
    if arguments.molecule:
        given = len(arguments.molecule)
        wrong = [name for name in arguments.tables if len(TABLES[name].molecule) != given]
        arguments.tables = [name for name in arguments.tables if name not in wrong]
        if wrong:
            print(f"left out with {given} file(s) in --molecule: {', '.join(wrong)}")
    if not arguments.tables:
        parser.error("no table is left")
    return arguments


def run(table: Table, arguments: argparse.Namespace, folder: Path, noise: Noise | None) -> None:
    """Do what is not done yet."""
    size = SIZES[arguments.size]
    rows = [row for row in table.rows if row.at_tiny or arguments.size != "tiny"]
    if arguments.steps is not None:
        size = replace(size, steps=arguments.steps)
    bench = Bench.make(table, size, arguments.structures, noise, folder, seed=1)
    jobs = [(name, 0, compute) for name, compute in reference_rows(bench).items()]
    for row in rows:
        changed = replace(row, overrides=(*row.overrides, *arguments.overrides))
        for seed in arguments.seeds:
            training = folder / "training" / f"{file_name(row.name)}-{seed}"
            jobs.append((row.name, seed, partial(trained_row, bench, changed, seed, training)))
    for name in missing_baselines(table):
        extra = "baselines" if name == "bm3d" else "evaluate"
        print(f"{table.name}: left out {name}, which needs pip install 'cryohush[{extra}]'", flush=True)
    for name, seed, compute in jobs:
        if arguments.rows is None or any(text in name for text in arguments.rows):
            do(folder, name, seed, " and ".join(table.molecule), compute)
    draw(bench, folder, arguments.seeds[0])


def draw(bench: Bench, folder: Path, seed: int) -> None:
    """`picture.png`: a row of images for each network, all but the noisy ones on one grey scale."""
    shown = {name: images.numpy() for name, images in shown_images(bench, folder / "training", seed).items()}
    limits = grey_range(shown["clean"])
    rows = [
        Row(name.replace(", t", ",\nt"), images, grey_range(images) if name == NOISY else limits)
        for name, images in shown.items()
    ]
    columns = len(shown["clean"])
    width, height = columns + 1.5, len(rows) + 0.35
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(1.45 / width, 0.3 / height, 1 - 0.05 / width, 1 - 0.05 / height)
    draw_rows(figure, rows, titles=[""] * columns, pixel_size_angstrom=bench.molecule.pixel_size_angstrom)
    for panel in figure.axes[::columns]:
        panel.yaxis.label.set(rotation=0, ha="right", va="center")
    with writing(folder / "picture.png") as part:
        figure.savefig(part, format="png", dpi=120)


def do(folder: Path, name: str, seed: int, molecule: str, compute: Callable[[], Result]) -> None:
    """Write one row's JSON file unless it is there."""
    path = folder / "rows" / f"{file_name(name)}-{seed}.json"
    if path.exists():
        return
    print(f"{folder.name}: {name}, seed {seed}", flush=True)
    result = {"row": name, "seed": seed, "machine": machine(), "molecule": molecule, **compute()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def write(folder: Path) -> None:
    """The tables of all rows that are done."""
    parts = []
    for table in TABLES.values():
        results = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((folder / table.name / "rows").glob("*.json"))
        ]
        if results:
            text = table_text(table, folder.name, results)
            (folder / table.name / "table.md").write_text(text, encoding="utf-8")
            parts.append(text)
    (folder / "papers.md").write_text("\n".join(parts), encoding="utf-8")


def table_text(table: Table, size_name: str, results: list[Result]) -> str:
    size = SIZES[size_name]
    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(result["row"], []).append(result)
    order = [NOISY, *table.classical, *(row.name for row in table.rows), LINEAR, LIMIT]
    trained = [result for result in results if "steps" in result]
    lines = [f"**{table.title}** ({size_name}: {size.box_px} px, {size.images} test images)", ""]
    if trained:
        lines += [
            f"Networks updated {spread([r['updates'] for r in trained])} times with batches of "
            f"{spread([r['batch_size'] for r in trained])}, "
            f"{spread([round(r['training_seconds']) for r in trained])} s a row, "
            f"{len({r['seed'] for r in trained})} run(s) a row, on "
            f"{', '.join(sorted({r['machine'] for r in trained}))}.",
            "",
        ]
    molecules = sorted({result["molecule"] for result in results})
    lines += [f"Molecule: {'; '.join(molecules)}.", ""]
    for case in table.cases:
        lines += case_lines(case.name, [name for name in order if name in by_row], by_row)
    return "\n".join([*lines, "Published:", "", *(f"- {line}" for line in table.published), ""])


def case_lines(case: str, order: list[str], by_row: dict[str, list[Result]]) -> list[str]:
    apart = "told_apart" in by_row[order[0]][0]["cases"][case]
    heads = ["row", "MSE / 1e-3", "PSNR / dB", "gain / dB", "SSIM", "SSIM, papers'", "affine NMSE"]
    mapped = "map_angstrom" in by_row[order[0]][0]["cases"][case]
    heads += ["efficiency", "beats CWF", *(["told apart"] if apart else [])]
    heads += ["map / Å, FSC 0.5", "FSC 0.143"] if mapped else []
    structural = "structural_left" in by_row[order[0]][0]["cases"][case]
    heads += ["structural noise left"] if structural else []
    heads += ["fine detail: power", "correlation"]
    heads += ["noise: power", "alike", "FRC", "parameters", "s per 1,000"]
    on_gpu = any("cuda" in own[0].get("seconds_per_1000", ()) for own in by_row.values())
    heads += ["on a GPU"] if on_gpu else []
    told = "" if not apart else ceiling_line(by_row[order[0]][0]["cases"][case])
    lines = [f"{case}:{told}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in order:
        own = [result["cases"][case] for result in by_row[name]]
        cells = [
            name,
            figure([1000 * one["mse"] for one in own], 2),
            figure([one["psnr"] for one in own], 2),
            figure([one["psnr"] - mean_of(by_row, NOISY, case, "psnr") for one in own], 1),
            figure([one["ssim"] for one in own], 3),
            figure([one["ssim_published"] for one in own], 3),
            figure([one["affine_nmse"] for one in own], 4),
            figure([efficiency(one["nmse"], by_row, case) for one in own], 2),
            beats(own, by_row, case) if "steps" in by_row[name][0] else "",
        ]
        if apart:
            cells.append(figure([statistics.fmean(one["told_apart"]["isomap"]) for one in own], 1))
        for key in ("map_angstrom", "map_angstrom_0.143") if mapped else ():
            cells.append(figure([one.get(key, math.nan) for one in own], 1))
        if structural:
            cells.append(figure([one.get("structural_left", math.nan) for one in own], 2))
        for key in ("fine_power", "fine_correlation"):
            cells.append(figure([one.get(key, math.nan) for one in own], 2))
        for key in ("noise_power", "noise_alike", "noise_half_set_frc"):
            cells.append(figure([one[key] for one in own], 2))
        parameters = by_row[name][0].get("parameters")
        cells.append("" if parameters is None else f"{parameters:,}")
        seconds = by_row[name][0].get("seconds_per_1000", {"cpu": own[0]["seconds_per_1000"]})
        cells.append("" if name == NOISY else f"{seconds['cpu']:.1f}")
        if on_gpu:
            cells.append(f"{seconds['cuda']:.1f}" if "cuda" in seconds else "")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *(manifold_lines(case, order, by_row) if apart else [])]


def ceiling_line(result: Result) -> str:
    views = len(result["told_apart"]["isomap"])
    return (
        f" in each of {views} views, whoever knows the view and both maps can tell {result['ceiling']:.1f} "
        "of 60 images apart."
    )


def manifold_lines(case: str, order: list[str], by_row: dict[str, list[Result]]) -> list[str]:
    """Told apart after other ways to lay the images out in two dimensions."""
    methods = list(by_row[order[0]][0]["cases"][case]["told_apart"])
    lines = ["| told apart of 60 | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name in order:
        own = [result["cases"][case]["told_apart"] for result in by_row[name]]
        cells = [figure([statistics.fmean(one[method]) for one in own], 1) for method in methods]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return [*lines, ""]


def mean_of(by_row: dict[str, list[Result]], name: str, case: str, key: str) -> float:
    if name not in by_row:
        return math.nan
    return statistics.fmean(result["cases"][case][key] for result in by_row[name])


def efficiency(nmse: float, by_row: dict[str, list[Result]], case: str) -> float:
    if LIMIT not in by_row:
        return math.nan
    linear = math.log(mean_of(by_row, LINEAR, case, "nmse"))
    limit = max(mean_of(by_row, LIMIT, case, key) for key in ("nmse", "pose_floor_nmse"))
    if math.log(limit) >= linear:  # real noise may have it so: no limit then
        return math.nan
    return (linear - math.log(nmse)) / (linear - math.log(limit))


def beats(own: list[Result], by_row: dict[str, list[Result]], case: str) -> str:
    """Whether the row is better than the covariance Wiener filter as it comes and on the best grey scale."""
    better = [
        statistics.fmean(one[key] for one in own) < mean_of(by_row, CWF, case, key)
        for key in ("nmse", "affine_nmse")
    ]
    return "yes" if all(better) else "no"


def figure(values: list[float], digits: int) -> str:
    """Mean, and the deviation over runs where there are several."""
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return ""
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def spread(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


if __name__ == "__main__":
    main()
