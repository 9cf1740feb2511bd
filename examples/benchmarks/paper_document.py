"""The tables of docs/papers.md, from what `papers.py` measured and what the papers print.

    python paper_document.py [--collect DIR] [--write ../../docs/papers.md] [--compare TABLE ROW ROW]

`--collect` takes the rows below DIR, which was the --output of `papers.py`, into results/papers.json: beside
those that it has of a table and in the place of the same row and seed, or of the whole table where its size
is another. `--write` puts every table into the page, between the two lines that name this script and the
table. `--compare` prints by how much one row is ahead of another, run by run, in PSNR, SSIM and images of 60
that are told apart: the mean over the seeds that both have, and its standard error. Otherwise the tables
are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from paper_tables import PUBLISHED, SIZES, TABLES, Table

RESULTS = Path(__file__).with_name("results") / "papers.json"
HEAD, FOOT = "<!-- paper_document.py: begin {} -->", "<!-- paper_document.py: end {} -->"
#: what is kept of each test set of a row
FIGURES = (
    "psnr",
    "ssim",
    "mse",
    "affine_nmse",
    "mae_8_bit",
    "rmse_8_bit",
    "fine_power",
    "fine_correlation",
    "structural_left",
    "map_angstrom",
    "map_angstrom_0.143",
)
LAYOUTS = {"isomap": "Isomap", "spectral": "spectral", "mds": "MDS", "tsne": "t-SNE"}
#: tables that show how many are told apart after every layout, not Isomap's alone
LAID_OUT = ("conformations_0.1", "conformations_0.05", "alpha_beta")
FILTERS = {"bm3d": "BM3D", "covariance_wiener": "CWF", "noisy": "Noisy"}
#: the test set of table `sigma` for which the paper prints errors in grey values of 8 bits
EIGHT_BIT = "sigma 40"
_ON_NOISE = ", trained on real noise"
#: of each table, the printed ones that stand beside it and, where they differ, the names that they have there
PRINTED: dict[str, tuple[str, str, str | None, dict[str, str]]] = {
    "noise_blocks": (
        "tang2022",
        "1",
        None,
        {
            "mean": "Mean filter",
            "gaussian": "Gaussian filter",
            "bilateral": "Bilateral filtering",
            "low_pass": "Low pass filter",
            f"DnCNN{_ON_NOISE}": "DnCNN",
            f"GAN (unsupervised){_ON_NOISE}": "GAN (unsupervised)",
            f"cGAN + perceptual{_ON_NOISE}": "GAN",
        },
    ),
    **{
        f"low_snr_{molecule}": (
            "zhang2024",
            "1",
            entry,
            {"dictionary": "K-SVD", "noise2noise": "Noise2noise", "sr3 + U-Net": "SR3 and U-Net"},
        )
        for molecule, entry in (("6cvm", "EMD-8511"), ("5vox_reassembled", "EMD-24928"))
    },
    "sigma": ("ouyang2020", "1", None, {"gaussian": "Gaussian blur", "dictionary": "K-SVD"}),
    **{
        f"conformations_{snr}": ("gu", "1", snr, {"dictionary": "KSVD", "non_local_means": "Non-local means"})
        for snr in ("0.1", "0.05")
    },
    "alpha_beta": ("gu", "4", "0.1", {}),
    "structural_noise": (
        "zhang2024",
        "1",
        "EMD-8511",
        {
            "noise2noise": "Noise2noise",
            "DenoiseGAN, map cleaned": "DenoiseGAN",
            "RobustGAN, map cleaned": "RobustGAN",
            "sr3 + U-Net, map cleaned": "SR3 and U-Net",
        },
    ),
    "alone": ("gu", "1", "0.1", {}),
    "no_residuals": ("gu", "5", "0.1", {}),
    "lambda": ("gu", "6", None, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of docs/papers.md.")
    parser.add_argument("--collect", type=Path, help="folder of papers.py with new rows")
    parser.add_argument("--write", type=Path, help="a page with lines that name this script")
    parser.add_argument("--compare", nargs=3, metavar=("TABLE", "ROW", "ROW"), help="one row less another")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if arguments.collect:
        for name, found in collected(arguments.collect).items():
            kept[name] = joined(kept.get(name), found)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if arguments.compare:
        name, *rows = arguments.compare
        print("\n".join(difference(kept[name]["rows"], *rows)))
    elif arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(filled(page, kept), encoding="utf-8")
    else:
        print("\n".join(table_text(name, kept[name]) for name in kept))


def filled(page: str, kept: dict[str, Any]) -> str:
    """The page with each table that it has a place for."""
    for name in kept:
        head, foot = HEAD.format(name), FOOT.format(name)
        if head in page:
            before, rest = page.split(head)
            page = f"{before}{head}\n{table_text(name, kept[name])}{foot}{rest.split(foot)[1]}"
    return page


def collected(folder: Path) -> dict[str, Any]:
    """What is kept of each table with trained rows below a folder of `papers.py`."""
    found: dict[str, Any] = {}
    for size in SIZES:
        for name in TABLES:
            files = sorted((folder / size / name / "rows").glob("*.json"))
            rows = [kept_row(json.loads(file.read_text(encoding="utf-8"))) for file in files]
            if any("updates" in row for row in rows):
                found[name] = {"size": size, "rows": rows}
    return found


def joined(kept: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """A table with the rows that were found, in the place of the same rows and seeds."""
    if kept is None or kept["size"] != found["size"]:
        return found
    rows = {(row["row"], row["seed"]): row for row in (*kept["rows"], *found["rows"])}
    return {**found, "rows": [rows[key] for key in sorted(rows)]}


def kept_row(result: dict[str, Any]) -> dict[str, Any]:
    row = {
        key: result[key] for key in ("row", "seed", "updates", "batch_size", "parameters") if key in result
    }
    if "held_out_scores" in result:
        row["held_out_scores"] = [round(score, 4) for score in result["held_out_scores"]]
    row["cases"] = {}
    for case, figures in result["cases"].items():
        row["cases"][case] = {key: round(figures[key], 6) for key in FIGURES if key in figures}
        if "told_apart" in figures:
            row["cases"][case] |= {
                "ceiling": round(figures["ceiling"], 2),
                "told_apart": {
                    key: round(statistics.fmean(n), 2) for key, n in figures["told_apart"].items()
                },
            }
    return row


def table_text(name: str, kept: dict[str, Any]) -> str:
    table, size = TABLES[name], SIZES[kept["size"]]
    by_row: dict[str, list[dict[str, Any]]] = {}
    for one in kept["rows"]:
        by_row.setdefault(one["row"], []).append(one)
    order = [row for row in ordered(table) if row in by_row]
    first = by_row[order[0]][0]["cases"]
    told = [case for case, figures in first.items() if "told_apart" in figures]
    mapped = [case for case, figures in first.items() if "map_angstrom" in figures]
    trained = [one["cases"] for one in kept["rows"] if "updates" in one]
    fine = [case for case in first if all("fine_power" in cases[case] for cases in trained)]
    watched = table.checks > 4
    mixed = any(row.contaminant for row in table.rows)
    heads = ["", "published", *(f"{case}: PSNR / dB, SSIM" for case in first)]
    heads += ["MSE / that of pure pairs"] if mixed else []
    layouts = tuple(LAYOUTS) if name in LAID_OUT else ("isomap",)
    apart_by = ": " + ", ".join(LAYOUTS.values()) if name in LAID_OUT else ""
    heads += [f"told apart{apart_by}" for _ in told]
    heads += ["map / Å: FSC 0.5, 0.143" for _ in mapped]
    heads += ["structural noise left"] if table.structural else []
    heads += [f"fine detail{f', {case}' if len(fine) > 1 else ''}: power, correlation" for case in fine]
    heads += ["held-out error: lowest, last, rises"] if watched else []
    heads += ["published: MAE, PMSE of 8 bits", f"{EIGHT_BIT}: the same"] if name == "sigma" else []
    heads += ["parameters", "runs"]
    differ = len({one["updates"] for one in kept["rows"] if "updates" in one}) > 1
    heads += ["updates"] if differ else []
    lines = [terms(kept["rows"], size.box_px, kept["size"]), ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in order:
        runs = by_row[row]
        cells = [
            row,
            printed(name, row),
            *(pair(runs, case, "psnr", "ssim", digits=(2, 3)) for case in first),
        ]
        cells += [against_pure(row, by_row)] if mixed else []
        for case in told:
            apart = [run["cases"][case]["told_apart"] for run in runs]
            cells.append(", ".join(spread([one[layout] for one in apart], 1) for layout in layouts))
        cells += [pair(runs, case, "map_angstrom", "map_angstrom_0.143", digits=(0, 0)) for case in mapped]
        cells += [pair(runs, case, "structural_left", digits=(2, 2)) for case in first if table.structural]
        cells += [pair(runs, case, "fine_power", "fine_correlation", digits=(2, 2)) for case in fine]
        cells += [course(runs)] if watched else []
        if name == "sigma":
            cells += [printed_eight_bit(row), pair(runs, EIGHT_BIT, "mae_8_bit", "rmse_8_bit", digits=(2, 2))]
        parameters = runs[0].get("parameters")
        cells += ["" if parameters is None else f"{parameters:,}", str(len(runs))]
        cells += [" and ".join(map(str, sorted({run.get("updates", "") for run in runs})))] if differ else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def difference(rows: list[dict[str, Any]], row: str, other: str) -> list[str]:
    """Each test set's figures of a row less those of another, seed by seed: mean ± standard error."""
    runs, others = (
        {one["seed"]: one["cases"] for one in rows if one["row"] == name} for name in (row, other)
    )
    seeds = sorted(runs.keys() & others.keys()) or sorted(max(runs, others, key=len))
    # a filter has no seeds
    runs, others = (dict.fromkeys(seeds, *of.values()) if len(of) == 1 else of for of in (runs, others))
    lines = []
    for case in runs[seeds[0]]:
        texts = []
        for name, digits in (("psnr", 3), ("ssim", 4)):
            gains = [runs[seed][case][name] - others[seed][case][name] for seed in seeds]
            texts.append(f"{name.upper()} {gained(gains, digits)}")
        for layout in runs[seeds[0]][case].get("told_apart", ()):
            told, others_told = (
                [cases[seed][case]["told_apart"][layout] for seed in seeds] for cases in (runs, others)
            )
            gains = [one - other for one, other in zip(told, others_told, strict=True)]
            texts.append(f"told apart ({LAYOUTS[layout]}) {gained(gains, 1)}")
        lines.append(f"{case}, {len(seeds)} run(s): {', '.join(texts)}")
    return lines


def gained(gains: list[float], digits: int) -> str:
    """Mean ± its standard error."""
    text = f"{statistics.fmean(gains):+.{digits}f}"
    return text if len(gains) < 2 else f"{text} ± {statistics.stdev(gains) / len(gains) ** 0.5:.{digits}f}"


def terms(rows: list[dict[str, Any]], box_px: int, size: str) -> str:
    """How the networks of a table were trained."""
    trained = [row for row in rows if "updates" in row]
    updates, batches = (sorted({row[key] for row in trained}) for key in ("updates", "batch_size"))
    return (
        f"Size `{size}`, {box_px} px, {' and '.join(map(str, updates))} updates with batches of "
        f"{' and '.join(map(str, batches))}:"
    )


def ordered(table: Table) -> list[str]:
    """Names of the rows as `papers.py` has them."""
    return ["noisy", *table.classical, *(row.name for row in table.rows), "best linear", "Bayes limit"]


def published_row(name: str, row: str) -> Any:
    """What the paper's table has for a row of table `name`; None where it has nothing."""
    paper, number, _, names = PRINTED[name]
    return PUBLISHED[paper]["tables"][number]["rows"].get(names.get(row, FILTERS.get(row, row)))


def printed(name: str, row: str) -> str:
    """PSNR and SSIM that the paper has for a row, or MSE where it has no more."""
    if name == "contamination":
        return contaminated(row)
    paper, number, case, _ = PRINTED[name]
    found = published_row(name, row)
    if name == "alpha_beta":
        found = PUBLISHED[paper]["tables"][number]["rows"].get(row.split("-GAN")[0].replace("0.", "."))
    if name == "lambda" and row.startswith("lambda"):
        found = PUBLISHED[paper]["tables"][number]["rows"].get(row.split()[1].rstrip(","))
    if name == "sigma" and row.startswith("WGAN + grey values"):
        # the first of table 2 is the row of table 1, where it has less
        _, network, critic = row.replace("critic ", "").replace("ADAM", "Adam").split(", ")
        found = PUBLISHED[paper]["tables"]["2"]["rows"].get(f"{network}, {critic}")
    if found is not None and case is not None:
        found = found.get(case)
    if row == "sr3 alone":
        found = PUBLISHED[paper]["diffusion_alone"][case]
    if name == "conformations_0.05" and row.startswith("progressive GAN"):
        found = PUBLISHED["gu"]["progressive"][row.replace("progressive GAN", "WGANgp")]
    if found is None:
        return ""
    if "psnr" not in found:
        return f"MSE {1000 * found['mse']:g}e-3"
    figures = [found[name] for name in ("psnr", "ssim") if name in found]
    # half a digit up, as one rounds by hand
    return ", ".join(f"{figure + 1e-9:.2f}" for figure in figures)


def printed_eight_bit(row: str) -> str:
    """MAE and PMSE that paper 3 has for a row of table `sigma`."""
    found = published_row("sigma", "WGAN" if row.endswith("Adam 1e-4, critic SGD 1e-5") else row)
    return "" if found is None else f"{found['mae']:.2f}, {found['pmse']:.2f}"


def contaminated(row: str) -> str:
    """MSE / 1e-3 that the paper has for `NAME, type N, SHARE`."""
    parts = row.split(", type ")
    if len(parts) < 2 or parts[0] not in PUBLISHED["gu"]["tables"]["2"]["rows"]:
        return ""
    kind, share = parts[1].split(", ")
    value = PUBLISHED["gu"]["tables"]["2"]["rows"][parts[0]][int(kind)][round(10 * float(share)) - 1]
    return f"MSE {value:g}e-3"


def against_pure(row: str, by_row: dict[str, list[dict[str, Any]]]) -> str:
    """How many times the error is that of the same row without contamination, seed by seed."""
    name, *kind = row.split(", type ")
    if not kind or f"{name}, pure" not in by_row:
        return ""
    errors, of_pure = (
        {run["seed"]: statistics.fmean(one["mse"] for one in run["cases"].values()) for run in by_row[which]}
        for which in (row, f"{name}, pure")
    )
    return spread([errors[seed] / of_pure[seed] for seed in sorted(errors.keys() & of_pure.keys())], 2)


def course(runs: list[dict[str, Any]]) -> str:
    """The held-out error's lowest and last value, and how often it rose by a tenth between two checks."""
    texts = []
    for scores in (run["held_out_scores"] for run in runs if "held_out_scores" in run):
        rises = sum(new > 1.1 * old for old, new in pairwise(scores))
        texts.append(f"{min(scores):.3f}, {scores[-1]:.3f}, {rises} of {len(scores) - 1}")
    return "; ".join(texts)


def pair(runs: list[dict[str, Any]], case: str, *names: str, digits: tuple[int, int]) -> str:
    """Two figures of a test set."""
    columns = [[run["cases"][case][name] for run in runs if name in run["cases"][case]] for name in names]
    return ", ".join(spread(column, n) for column, n in zip(columns, digits, strict=False) if column)


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation of runs."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
