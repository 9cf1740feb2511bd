"""One table of all tasks and methods, from the figures that the benchmarks of users' tasks wrote.

    python what_helps.py [--results results] [--write ../../docs/evidence.md]

Reads <task>.json of each benchmark, also of larger sets (classification_<particles>.json,
heterogeneity_large.json), and reconstruction.json for the uses that are not honest, and prints the tables;
--write puts them into a page, between the two lines that name this script. The verdict is on what `cryohush
denoise` does by default, by a rule and nothing else: a gain or loss counts when it exceeds its own error
times Student's t (two-sided, 5 %), with as many sets as were made.

- use it: better than raw images and than the low-pass filter;
- use it or a low-pass filter: better than raw images, and not than the filter;
- no difference shown: neither a gain nor a loss that counts;
- don't: worse than raw images.

By the same rule `stack` says whether the rest of the stack changes anything: the default beside `general`
denoising each image by itself; and `map` whether a map of the particle does (`--context map`), beside the
default.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hard_picking import GENERAL, PICKERS, TWENTY
from scipy.stats import t as student
from sorted_maps import EVERYTHING
from user_tasks import (
    ALONE,
    LOW_PASS,
    MAP,
    RAW,
    SESSION,
    STACK,
    TOPAZ,
    Cell,
    mean_and_error,
    plus_minus,
    table,
)

HEAD, FOOT = "<!-- what_helps.py: begin -->", "<!-- what_helps.py: end -->"
COLUMNS = (RAW, LOW_PASS, TOPAZ, ALONE, STACK, SESSION, MAP)
CHANGES = {-1: "worse", 0: "no difference shown", 1: "better"}
CLASSIFIED = {
    "species: NMI": "nmi",
    "spread of views, degrees": "spread",
    "averages of raw images right to, 1/Å": "raw resolution",
    "claimed, 1/Å": "claimed",
}
SETTLING = {
    "species: purity": "purity",
    **CLASSIFIED,
    "angle in the plane, degrees": "plane",
    "change class in the last iteration": "moving",
}
SORTED = {
    "kept": "kept",
    "of these particles": "purity",
    "of the particles, kept": "recall",
    "map right to, 1/Å": "resolution",
    "mean FSC with the truth beyond 40 Å": "fsc",
}


@dataclass(frozen=True)
class Row:
    """A figure of a task; cells whose name begins so are taken."""

    title: str
    task: str
    figure: str
    cells: str = ""
    better: int = 1
    digits: int = 3
    micrographs: bool = False


CLASSES, PICKS, POSES = "classification", "hard_picking", "found_poses"
MANY, TWO, FIVE = "classification_5000", "two species", "five species"
AP, RELION_AP, TEMPLATE_AP, DETECTOR_AP = (f"{picker} average precision" for picker in PICKERS)
ROWS = (
    Row("Sorting out junk, simulated: AUC", "sorting", "ordinary auc", "!real"),
    Row("the same: purity where 95 % are kept", "sorting", "ordinary purity", "!real"),
    Row("Sorting out empty places, real: AUC", "sorting", "ordinary auc", "real"),
    Row("2D classes: species apart (NMI)", CLASSES, "nmi", TWO),
    Row(
        "2D classes: views apart (spread, degrees, less is better)",
        CLASSES,
        "spread",
        TWO,
        better=-1,
        digits=1,
    ),
    Row(
        "2D classes: angle in the plane, degrees, less is better", CLASSES, "plane", TWO, better=-1, digits=1
    ),
    Row("2D classes: averages right to, 1/Å", CLASSES, "resolution", TWO, digits=4),
    Row("2D classes: averages of the raw images right to, 1/Å", CLASSES, "raw resolution", TWO, digits=4),
    Row("2D classes, five species: species apart (NMI)", CLASSES, "nmi", FIVE),
    Row("2D classes, 5,000 particles: species apart (NMI)", MANY, "nmi", TWO),
    Row(
        "2D classes, 5,000: angle in the plane, degrees, less is better",
        MANY,
        "plane",
        TWO,
        better=-1,
        digits=1,
    ),
    Row("Picking blobs, simulated: AP", PICKS, AP, "!real", micrographs=True),
    Row(
        "the same: false picks at the best F1, less is better",
        PICKS,
        "LoG false",
        "!real",
        better=-1,
        micrographs=True,
    ),
    Row("RELION's LoG, simulated: AP", PICKS, RELION_AP, "!real", micrographs=True),
    Row("RELION's templates, simulated: AP", PICKS, TEMPLATE_AP, "!real", micrographs=True),
    Row("the same: best F1", PICKS, "RELION template F1", "!real", micrographs=True),
    Row("Topaz's detector, simulated: AP", PICKS, DETECTOR_AP, "!real", micrographs=True),
    Row("Picking blobs, real: AP", PICKS, AP, "real", micrographs=True),
    Row("RELION's LoG, real: AP", PICKS, RELION_AP, "real", micrographs=True),
    Row("Poses from 40 Å: median error, degrees, less is better", POSES, "median", better=-1, digits=1),
    Row("Poses from 40 Å: raw map right to, 1/Å", POSES, "resolution", digits=4),
    Row("Looking: contrast on particles and ice, AUC", "looking", "eye", micrographs=True),
    Row("Looking: blobs, AP", "looking", "picker", micrographs=True),
    Row("Two conformations, one view: components, accuracy", "heterogeneity", "pca"),
    Row("the same: best line, accuracy", "heterogeneity", "line"),
    Row("the same of 10,000 images: components, accuracy", "heterogeneity_large", "pca"),
    Row("of 10,000 images: best line, accuracy", "heterogeneity_large", "line"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="One table of all tasks and methods.")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--write", type=Path, help="a page with the two lines that name this script")
    arguments = parser.parse_args()
    if not any((arguments.results / f"{row.task}.json").exists() for row in ROWS):
        raise SystemExit(f"{arguments.results} has no results of a task, such as {ROWS[0].task}.json")
    text = whole_table(arguments.results)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(with_tables(page, text, arguments.write), encoding="utf-8")


def with_tables(page: str, text: str, path: Path) -> str:
    """A page with the tables between its two lines that name this script."""
    before, head, rest = page.partition(HEAD)
    _, foot, after = rest.partition(FOOT)
    if not (head and foot):
        raise SystemExit(f"{path} has no lines {HEAD} and {FOOT}: nothing was written")
    return f"{before}{HEAD}\n{text}{FOOT}{after}"


def whole_table(results: Path) -> str:
    titles = (
        "raw",
        "low-pass",
        "Topaz",
        "`general`, each by itself",
        "`general`, the default",
        "`general`, trained on the session",
        "`general`, with a map",
        "sets",
        "verdict",
        "stack",
        "map",
    )
    lines = ["| task, figure | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for row in ROWS:
        path = results / f"{row.task}.json"
        if not path.exists():
            continue
        every = json.loads(path.read_text(encoding="utf-8"))["cells"]
        ours = GENERAL if row.micrographs else STACK
        cells = [
            cell
            for name, cell in every.items()
            if wanted(row, name) and {RAW, ours} <= {method for method in cell if row.figure in cell[method]}
        ]
        if cells:
            lines.append(line(row, cells))
    text = "\n".join(lines) + "\n"
    larger = sorted(results.glob(f"{CLASSES}_*.json"), key=lambda path: int(path.stem.split("_")[-1]))
    for path, figures in ((results / f"{CLASSES}.json", CLASSIFIED), *((path, SETTLING) for path in larger)):
        text += details(path, "Class2D of {particles:,} particles", figures, RAW)
    text += details(results / "sorted_maps.json", "Maps after sorting", SORTED, EVERYTHING)
    return text + dishonest(results / "reconstruction.json")


def details(path: Path, title: str, figures: Mapping[str, str], reference: str) -> str:
    """A table of all methods of a task, for cells whose names begin alike; gains over the reference.

    The title may name settings that the cells were made with.
    """
    if not path.exists():
        return ""
    record = json.loads(path.read_text(encoding="utf-8"))
    cells, title, text = record["cells"], title.format(**record["settings"]), ""
    for kind in sorted({name.split(",")[0] for name in cells}):
        some = [cell for name, cell in cells.items() if name.startswith(f"{kind},")]
        sets = f"{len(some)} set{'s' if len(some) > 1 else ''}"
        text += f"\n{title}, {kind}, {sets}, in brackets the difference to {reference}:\n\n"
        text += table(some, figures, reference)
    return text


#: what is reconstructed, and what that is
MAPS = {
    "raw, true poses": "honest, and out of reach",
    "raw, poses of raw": "honest",
    "raw, poses of denoised": "honest",
    "denoised, poses of denoised": "not honest",
    "one Wiener filter, true poses": "not honest",
    "noise, poses of noise": "no particle at all",
    "denoised noise, poses of it": "no particle at all",
}


def dishonest(path: Path) -> str:
    """What half sets claim, and what is true, of maps that honest and other uses give."""
    if not path.exists():
        return ""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["condition"]: row for row in result["rows"]}
    lines = [
        "",
        "| images, poses | | claimed by half sets, Å | true (0.5 with the truth), Å | FSC too high by |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, use in MAPS.items():
        row = rows[name]
        true, above = f"{row['truth_resolution_angstrom']:.1f}", f"{row['overstated']:+.3f}"
        if not row["holds_particles"]:
            true, above = "none", ""
        lines.append(f"| {name} | {use} | {row['half_set_resolution_angstrom']:.1f} | {true} | {above} |")
    return "\n".join(lines) + "\n"


def wanted(row: Row, name: str) -> bool:
    if row.cells.startswith("!"):
        return not name.startswith(row.cells[1:])
    return name.startswith(row.cells)


def line(row: Row, cells: Sequence[Cell]) -> str:
    # micrographs have no context
    names = (RAW, TWENTY, TOPAZ, None, GENERAL, SESSION, None) if row.micrographs else COLUMNS
    entries = []
    for name in names:
        having = [cell for cell in cells if name is not None and row.figure in cell.get(name, {})]
        if name is None or not having:
            entries.append("")
            continue
        mean, error = mean_and_error([cell[name][row.figure] for cell in having])
        text = f"{mean:.{row.digits}f}{plus_minus(error, row.digits)}"
        if len(having) < len(cells):
            text += f" ({len(having)} set{'s' if len(having) > 1 else ''})"
        entries.append(text)
    said = verdict(row, cells, low_pass=TWENTY if row.micrographs else LOW_PASS, ours=names[4] or GENERAL)
    alone = any(row.figure in cell.get(ALONE, {}) for cell in cells)
    of_stack = CHANGES[difference(row, cells, STACK, ALONE)] if alone else ""
    mapped = any(row.figure in cell.get(MAP, {}) for cell in cells)
    of_map = CHANGES[difference(row, cells, MAP, STACK)] if mapped else ""
    said = f"**{said}**"
    return f"| {row.title} | " + " | ".join([*entries, str(len(cells)), said, of_stack, of_map]) + " |"


def verdict(row: Row, cells: Sequence[Cell], low_pass: str, ours: str) -> str:
    over_raw, over_filter = (difference(row, cells, ours, other) for other in (RAW, low_pass))
    if len(cells) < 2:
        return "one set: no verdict"
    if over_raw < 0:
        return "don't"
    if over_raw == 0:
        return "no difference shown"
    return "use it" if over_filter > 0 else "use it or a low-pass filter"


def difference(row: Row, cells: Sequence[Cell], method: str, other: str) -> int:
    """1 where the method is better by more than chance, -1 where it is worse, 0 where neither is shown."""
    both = [cell for cell in cells if all(row.figure in cell.get(name, {}) for name in (method, other))]
    gains = [row.better * (cell[method][row.figure] - cell[other][row.figure]) for cell in both]
    mean, error = mean_and_error(gains) if gains else (0.0, math.nan)
    if len(gains) < 2 or abs(mean) <= float(student.ppf(0.975, len(gains) - 1)) * error:
        return 0
    return 1 if mean > 0 else -1


if __name__ == "__main__":
    main()
