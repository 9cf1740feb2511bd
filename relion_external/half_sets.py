"""Half sets that stay independent: each is denoised with the model that was trained on the other one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.io.columns import read_columns
from ..core.io.files import writing
from ..core.io.star import Table, read_tables, unquote
from ..core.models.weights import WEIGHTS_NAME, load_model

SUBSET, _IMAGE = "rlnRandomSubset", "rlnImageName"
HALVES = (1, 2)


def half_models(model: str) -> dict[int, str] | None:
    """Return the model that was trained on each half set, if `model` is a training job of both; else None."""
    folder = Path(model)
    if not folder.is_dir() or (folder / WEIGHTS_NAME).exists():
        return None
    folders = {half: folder / f"half{half}" for half in HALVES}
    if not all((path / WEIGHTS_NAME).exists() for path in folders.values()):
        return None
    return {half: str(path) for half, path in folders.items()}


def trained_on(card: Mapping[str, Any]) -> tuple[int | None, str]:
    """Return which half set a model has learnt from, None for all or unknown, and of what, in words."""
    training = card.get("training") or {}
    section = training.get("reference") or training.get("pairs") or {}
    half = section.get("half_set")
    particles = section.get("particles") or section.get("noisy")
    if not particles:
        return None, ""
    counterpart = section.get("map") or section.get("target")
    part = f"half set {half} of " if half else ""
    return half, f"{part}{particles}" + (f" with {counterpart}" if counterpart else "")


@dataclass(frozen=True)
class HalfTables:
    """A table of particles and those of its half sets.

    Attributes
    ----------
    half
        Half set of each row of the table.
    tables
        The table of each half set; the same rows in the same order, text included.
    """

    half: list[int]
    tables: dict[int, Path]


def split(source: str, folders: Mapping[int, Path]) -> HalfTables:
    """Write a table of the rows of each half set, as `half1.star` and `half2.star`, into its folder.

    Raises
    ------
    InputError
        If the particles have no half sets, or there is none in one of them.
    StarError, OutputError
        If a file cannot be read or written.
    """
    half = [int(subset) if subset in ("1", "2") else 0 for subset in subsets(source)]
    if 0 in half or len(set(half)) < len(HALVES):
        raise InputError(
            f"expected {SUBSET} 1 and 2, found {', '.join(sorted(set(map(str, half)))) or 'no such column'}.",
            path=Path(source),
            remedy="The model is of a training on half sets: give the particles of that refinement, or one "
            "of its two models.",
        )
    tables = {}
    for number in HALVES:
        tables[number] = folders[number] / f"half{number}.star"
        folders[number].mkdir(parents=True, exist_ok=True)
        with writing(tables[number]) as part, part.open("wb") as file:
            for table in read_tables(source):
                file.writelines(table.header)
                column = table.column(SUBSET) if _is_particle_table(table) else None
                for _, line, values in table.rows():
                    if column is None or not values or unquote(values[column]) == str(number):
                        file.write(line)
    return HalfTables(half, tables)


def merged_names(half: list[int], tables: Mapping[int, Path]) -> list[str]:
    """Return the images that the tables of the half sets name, in the order of the whole table."""
    names = {number: iter(_column(table, _IMAGE)) for number, table in tables.items()}
    return [next(names[number]) for number in half]


def subsets(source: str | Path) -> list[str]:
    """Return `rlnRandomSubset` of each particle; nothing where the table does not have it."""
    return _column(source, SUBSET)


def warning(source: str | Path, model: str) -> str | None:
    """Return what is to be said if a model is applied to the half set that it was trained on."""
    half, _ = trained_on(load_model(model).card)
    if half is None:
        return None
    same = subsets(source).count(str(half))
    if not same:
        return None
    return (
        f"{same} particles belong to half set {half}, on which the model {model} was trained. Half sets that "
        "are denoised so are not independent any more. Give the training job itself as model, as External/"
        "job012: each half set is then denoised with the other one's model."
    )


def _is_particle_table(table: Table) -> bool:
    return _IMAGE in table.labels


def _column(source: str | Path, label: str) -> list[str]:
    found = read_columns(source, (label,), among=_is_particle_table)
    return [] if found is None else found.text[label]


def shared_progress(
    report: Callable[[int, int], None], half: list[int]
) -> dict[int, Callable[[int, int], None]]:
    """Return what each half set reports its progress to; together they show one line."""
    done = dict.fromkeys(HALVES, 0)

    def progress(number: int) -> Callable[[int, int], None]:
        def show(so_far: int, total: int) -> None:
            done[number] = round(half.count(number) * so_far / max(total, 1))
            report(sum(done.values()), len(half))

        return show

    return {number: progress(number) for number in HALVES}
