"""Ranges: they make the very files of a run without ranges, in whatever order they come back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import ModelError
from cryohush.core.inference.devices import LocalDevices
from cryohush.core.inference.engine import Choices, Task
from cryohush.core.inference.plan import StackPlan, batches
from cryohush.core.io.journal import RANGES_FOLDER
from cryohush.core.job_context import JobContext
from cryohush.core.jobs import denoise_parts, parts
from cryohush.core.jobs.denoise import DenoiseJob, run_denoise
from cryohush.core.jobs.denoise_parts import DenoiseWork, plan_ranges
from cryohush.core.models.weights import Weights, load_same_model

SIDE = 16
# of one image as float32
IMAGE_BYTES = 4 * SIDE * SIDE


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SMALLEST_PART_BYTES", 1)
    monkeypatch.setattr(parts, "FEWEST_PARTS", 1)


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

    def do(self, work: Any, context: JobContext) -> None:
        with work.in_parts(self.images * IMAGE_BYTES) as parts:
            waiting = list(parts.waiting)
            random.Random(self.seed).shuffle(waiting)
            for number, part in enumerate(waiting):
                if number == self.stop_after:
                    raise KeyboardInterrupt
                part.do(self)
                self.calculated.append(part.name)
                parts.take(part)


def files(folder: Path) -> dict[str, bytes]:
    """Content of the stacks; the tables name the folder that they are in."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.mrcs"))}


def plan(*counts: int) -> Task:
    stacks = [
        StackPlan(Path(f"{n}.mrcs"), f"{n}.mrcs", np.arange(count, dtype=np.int32), (SIDE, SIDE), 1.0)
        for n, count in enumerate(counts)
    ]
    sizes = Choices("fp32", {(SIDE, SIDE): 4})
    return Task(Weights(Path("w"), ""), DenoiseOptions(), sizes, stacks, are_micrographs=False, label="")


def test_ranges_are_whole_batches_and_hold_each_image_once() -> None:
    task = plan(21, 2, 3, 9)
    stacks, ranges = task.stacks, plan_ranges(task, 8 * IMAGE_BYTES, Path("parts"))
    assert [part.n_images for part in ranges] == [8, 8, 8, 8, 3]
    held = [
        (number, begin + i)
        for part in ranges
        for stack, (number, begin) in zip(part.task.stacks, part.places, strict=True)
        for i in range(len(stack.indices))
    ]
    assert held == [(number, i) for number, stack in enumerate(stacks) for i in range(len(stack.indices))]
    # the company of each image is that of the whole plan: the same batches come out of the parts
    companies = [
        sum(piece.end - piece.begin for piece in batch) for batch in batches(stacks, {(SIDE, SIDE): 4})
    ]
    of_parts = [
        sum(piece.end - piece.begin for piece in batch)
        for part in ranges
        for batch in batches(part.task.stacks, {(SIDE, SIDE): 4})
    ]
    assert of_parts == companies
    assert "images 9 to 16 of 0.mrcs" in ranges[1].describe()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_files_are_those_of_a_run_without_ranges(project: Path, weights: Path, seed: int) -> None:
    """To the byte, headers included: their statistics are sums that depend on the order."""
    source, chosen = project / "particles.star", options(weights)
    run_denoise(source, project / "whole", chosen)
    summary = DenoiseJob(source, chosen).run(project / "parts", devices=InRanges(seed))
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
        DenoiseJob(source, chosen).run(project / "parts", devices=first)
    summary = DenoiseJob(source, chosen).run(project / "parts", devices=second, earlier="resume")
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
        DenoiseJob(project / "particles.star", chosen).run(
            project / "parts", devices=InRanges(2, stop_after=4)
        )
    job = DenoiseJob(project / "particles.star", chosen)
    parts = job.run(project / "parts", devices=InRanges(), earlier="resume")
    assert files(project / "parts") == files(project / "whole")
    assert parts.skipped == whole.skipped
    assert [note.image for note in parts.skipped] == [14]


def test_other_options_never_take_ranges_of_an_earlier_run(project: Path, weights: Path) -> None:
    source = project / "particles.star"
    with pytest.raises(KeyboardInterrupt):
        DenoiseJob(source, options(weights, blend=0.9)).run(
            project / "parts", devices=InRanges(4, stop_after=3)
        )
    run_denoise(source, project / "whole", options(weights))
    DenoiseJob(source, options(weights)).run(project / "parts", devices=InRanges(4), earlier="anew")
    assert files(project / "parts") == files(project / "whole")


def test_a_worker_that_comes_too_late_spoils_nothing(project: Path, weights: Path) -> None:
    """It was given up, another one did its range, and then it wakes up."""

    class Late(InRanges):
        def do(self, work: DenoiseWork, context: JobContext) -> None:
            self.task = work.task
            super().do(work, context)

    late = Late()
    summary = DenoiseJob(project / "particles.star", options(weights)).run(project / "parts", devices=late)
    before = files(project / "parts")
    part = plan_ranges(late.task, 8 * IMAGE_BYTES, summary.output_dir / RANGES_FOLDER)[1]
    folder = part.folder
    folder.mkdir(parents=True)
    (folder / "theirs").touch()
    part.do(late)
    assert [path.name for path in folder.parent.rglob("*")] == [part.name, "theirs"]
    folder.joinpath("theirs").unlink()
    folder.rmdir()
    folder.parent.rmdir()
    assert files(project / "parts") == before


def test_weights_that_change_under_a_batch_are_refused(project: Path, weights: Path) -> None:
    load_same_model.cache_clear()
    denoise_parts._denoisers_at_hand.cache_clear()

    class Changing(InRanges):
        def ask(self, question: Any, *arguments: Any) -> Any:
            weights.write_bytes(weights.read_bytes() + b"\0")
            return super().ask(question, *arguments)

    with pytest.raises(ModelError):
        DenoiseJob(project / "particles.star", options(weights)).run(project / "parts", devices=Changing())
