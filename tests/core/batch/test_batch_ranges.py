"""Ranges: they make the very files of a run without ranges, in whatever order they come back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core.batch import ranges
from cryohush.core.batch.ranges import RANGES_FOLDER, Assembly, Range, RangeWork, denoise_range, plan_ranges
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import ModelError
from cryohush.core.inference.engine import LocalDevices, Task
from cryohush.core.inference.plan import StackPlan, batches
from cryohush.core.inference.stream import StreamResult
from cryohush.core.io.journal import Journal
from cryohush.core.jobs.denoise import run_denoise

SIDE = 16
# of one image as float32
IMAGE_BYTES = 4 * SIDE * SIDE


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "SMALLEST_RANGE_BYTES", 1)
    monkeypatch.setattr(ranges, "FEWEST_RANGES", 1)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Stacks of 21, 2, 3 and 9 images: long ones for several ranges, short ones within one."""
    for number, (name, count) in enumerate((("a", 21), ("b", 2), ("c", 3), ("d", 9))):
        write_stack(tmp_path / f"{name}.mrcs", noise(count, SIDE, SIDE, seed=number))
    names = [
        f"{i + 1:06d}@{name}.mrcs" for name, n in (("a", 21), ("b", 2), ("c", 3), ("d", 9)) for i in range(n)
    ]
    write_table(tmp_path / "particles.star", names)
    return tmp_path


def options(weights: Path, **given: Any) -> DenoiseOptions:
    return DenoiseOptions(
        **{
            "model": str(weights),
            "precision": "fp32",
            "batch_size": 4,
            "device": "cpu",
            "threads": 1,
            **given,
        }
    )


class InRanges(LocalDevices):
    """Ranges denoised in this process, one after the other, shuffled; some may be lost."""

    def __init__(self, seed: int = 0, stop_after: int | None = None, images: int = 8) -> None:
        super().__init__([torch.device("cpu")], 1)
        self.seed, self.stop_after, self.images = seed, stop_after, images
        self.calculated: list[str] = []

    def denoise(  # type: ignore[override]
        self,
        task: Task,
        output_dir: Path,
        journal: Journal,
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> StreamResult:
        parts = plan_ranges(task.stacks, task.choices.batch_sizes, self.images * IMAGE_BYTES)
        with Assembly(task, parts, output_dir, journal) as assembly:
            waiting = assembly.waiting()
            random.Random(self.seed).shuffle(waiting)
            for number, part in enumerate(waiting):
                if number == self.stop_after:
                    raise KeyboardInterrupt
                denoise_range(work(task, part, assembly.folder(part)), "cpu", 1)
                self.calculated.append(part.name)
                assembly.take(part)
            return assembly.finish()


def work(task: Task, part: Range, folder: Path) -> RangeWork:
    return RangeWork(
        part,
        folder,
        task.model.path,
        task.model.sha256,
        task.options,
        task.choices,
        task.are_micrographs,
        task.label,
    )


def files(folder: Path) -> dict[str, bytes]:
    """Content of the stacks; the tables name the folder that they are in."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.mrcs"))}


def plan(*counts: int) -> list[StackPlan]:
    return [
        StackPlan(Path(f"{n}.mrcs"), f"{n}.mrcs", np.arange(count, dtype=np.int32), (SIDE, SIDE), 1.0)
        for n, count in enumerate(counts)
    ]


def test_ranges_are_whole_batches_and_hold_each_image_once() -> None:
    stacks = plan(21, 2, 3, 9)
    parts = plan_ranges(stacks, {(SIDE, SIDE): 4}, 8 * IMAGE_BYTES)
    assert [part.n_images for part in parts] == [8, 8, 8, 8, 3]
    held = [
        (number, begin + i)
        for part in parts
        for stack, (number, begin) in zip(part.stacks, part.places, strict=True)
        for i in range(len(stack.indices))
    ]
    assert held == [(number, i) for number, stack in enumerate(stacks) for i in range(len(stack.indices))]
    # the company of each image is that of the whole plan: the same batches come out of the parts
    companies = [
        sum(piece.end - piece.begin for piece in batch) for batch in batches(stacks, {(SIDE, SIDE): 4})
    ]
    of_parts = [
        sum(piece.end - piece.begin for piece in batch)
        for part in parts
        for batch in batches(part.stacks, {(SIDE, SIDE): 4})
    ]
    assert of_parts == companies
    assert "images 9 to 16 of 0.mrcs" in parts[1].describe()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_files_are_those_of_a_run_without_ranges(project: Path, weights: Path, seed: int) -> None:
    """To the byte, headers included: their statistics are sums that depend on the order."""
    source, chosen = project / "particles.star", options(weights)
    run_denoise(source, project / "whole", chosen)
    summary = run_denoise(source, project / "parts", chosen, engine=InRanges(seed))
    assert files(project / "parts") == files(project / "whole")
    assert summary.n_resumed == 0


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_new_driver_takes_what_was_finished_and_does_only_the_rest(
    project: Path, weights: Path, stop_after: int
) -> None:
    source, chosen = project / "particles.star", options(weights)
    run_denoise(source, project / "whole", chosen)
    first, second = InRanges(5, stop_after=stop_after), InRanges(6)
    with pytest.raises(KeyboardInterrupt):
        run_denoise(source, project / "parts", chosen, engine=first)
    summary = run_denoise(source, project / "parts", chosen, engine=second, earlier="resume")
    assert not set(first.calculated) & set(second.calculated)
    assert len(first.calculated) + len(second.calculated) == 5
    assert summary.n_resumed == sum(int(name.partition("+")[2]) for name in first.calculated)
    assert files(project / "parts") == files(project / "whole")


def test_float16_bad_images_and_their_notes_survive(project: Path, weights: Path) -> None:
    images = read_stack(project / "a.mrcs")
    images[13, 2, 2] = np.nan
    write_stack(project / "a.mrcs", images)
    chosen = options(weights, skip_bad=True, output_dtype="float16")
    whole = run_denoise(project / "particles.star", project / "whole", chosen)
    with pytest.raises(KeyboardInterrupt):
        run_denoise(project / "particles.star", project / "parts", chosen, engine=InRanges(2, stop_after=4))
    parts = run_denoise(
        project / "particles.star", project / "parts", chosen, engine=InRanges(), earlier="resume"
    )
    assert files(project / "parts") == files(project / "whole")
    assert parts.skipped == whole.skipped
    assert [note.image for note in parts.skipped] == [14]


def test_other_options_never_take_ranges_of_an_earlier_run(project: Path, weights: Path) -> None:
    source = project / "particles.star"
    with pytest.raises(KeyboardInterrupt):
        run_denoise(source, project / "parts", options(weights, blend=0.9), engine=InRanges(4, stop_after=3))
    run_denoise(source, project / "whole", options(weights))
    run_denoise(source, project / "parts", options(weights), engine=InRanges(4), earlier="anew")
    assert files(project / "parts") == files(project / "whole")


def test_a_worker_that_comes_too_late_spoils_nothing(project: Path, weights: Path) -> None:
    """It was given up, another one did its range, and then it wakes up."""

    class Late(InRanges):
        def denoise(self, task: Task, output_dir: Path, *others: Any) -> StreamResult:  # type: ignore[override]
            self.task = task
            return super().denoise(task, output_dir, *others)

    engine = Late()
    summary = run_denoise(project / "particles.star", project / "parts", options(weights), engine=engine)
    before = files(project / "parts")
    part = plan_ranges(engine.task.stacks, engine.task.choices.batch_sizes, 8 * IMAGE_BYTES)[1]
    folder = summary.output_dir / RANGES_FOLDER / part.name
    folder.mkdir(parents=True)
    (folder / "theirs").touch()
    denoise_range(work(engine.task, part, folder), "cpu", 1)
    assert [path.name for path in folder.parent.rglob("*")] == [part.name, "theirs"]
    folder.joinpath("theirs").unlink()
    folder.rmdir()
    folder.parent.rmdir()
    assert files(project / "parts") == before


def test_weights_that_change_under_a_batch_are_refused(project: Path, weights: Path) -> None:
    engine = InRanges()
    ranges._at_hand.cache_clear()
    engine_choose = engine.choose

    def choose(*arguments: Any, **named: Any) -> Any:
        weights.write_bytes(weights.read_bytes() + b"\0")
        return engine_choose(*arguments, **named)

    engine.choose = choose  # type: ignore[method-assign]
    with pytest.raises(ModelError):
        run_denoise(project / "particles.star", project / "parts", options(weights), engine=engine)
