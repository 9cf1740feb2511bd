"""Several devices share a run: its bytes are those of one, and one that fails ends it with a clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import noise, read_stack, write_stack

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import DeviceError
from cryohush.core.inference import devices
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import LocalDevices
from cryohush.core.inference.engine import choose
from cryohush.core.inference.feeding import Denoised, Feeding, Images, Worker
from cryohush.core.inference.plan import Piece, StackPlan
from cryohush.core.inference.stream import BATCHES_PER_WORKER, Output, StreamResult, denoise_stacks
from cryohush.core.io.journal import JOURNAL_NAME, Journal, Undertaking
from cryohush.core.job_context import QUIET
from cryohush.core.jobs.denoise import DenoiseJob
from cryohush.core.models.weights import LoadedModel, Weights

COUNT, BATCH, SIDE = 48, 4, 16
# What torch says when a GPU dies; only the first line tells anything.
LOST = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_stack(tmp_path / "x.mrcs", noise(COUNT, SIDE, SIDE))
    return tmp_path / "x.mrcs"


def run(source: Path, weights: Path, n_devices: int, output: str, **given: Any) -> bytes:
    """Denoise on stand-ins for GPUs: the CPU, several times, with a network and a thread each."""
    cpus = LocalDevices([torch.device("cpu")] * n_devices, threads=n_devices)
    options = DenoiseOptions(model=str(weights), precision="fp32", batch_size=BATCH)
    DenoiseJob(source, options).run(source.parent / output, devices=cpus, **given)
    return (source.parent / output / source.name).read_bytes()


def when_called(monkeypatch: pytest.MonkeyPatch, what: Callable[[int, int], None]) -> None:
    """Have something happen before each batch; it gets the numbers of the device and of the batch."""
    denoise, lock, calls = Denoiser.denoise, threading.Lock(), [0]
    numbers: dict[int, int] = {}

    def disturbed(self: Denoiser, images: Images, **given: Any) -> Any:
        with lock:
            number, calls[0] = calls[0], calls[0] + 1
            device = numbers.setdefault(id(self), len(numbers))
        what(device, number)
        return denoise(self, images, **given)

    monkeypatch.setattr(Denoiser, "denoise", disturbed)


def test_devices_of_any_speed_give_the_bytes_of_one(
    source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(source, weights, 1, "one")
    when_called(monkeypatch, lambda device, batch: time.sleep(0.02 * device))
    assert run(source, weights, 3, "three") == expected


def test_a_device_that_fails_is_named_and_the_others_go_on_from_there(
    source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(source, weights, 1, "one")

    lost: list[int] = []

    def fail(device: int, batch: int) -> None:
        if batch == 5:
            lost.append(device)
        if device in lost:
            raise RuntimeError(LOST)

    with monkeypatch.context() as broken:
        when_called(broken, fail)
        with pytest.raises(DeviceError, match=r"^cpu failed: CUDA error: unspecified launch failure What is"):
            run(source, weights, 3, "three")
    assert not (source.parent / "three" / "x.mrcs").exists()
    assert run(source, weights, 2, "three", earlier="resume") == expected


def denoise(source: Path, workers: Sequence[Worker], **given: Any) -> StreamResult:
    """Run the stream itself with these workers."""
    stack = StackPlan(source, "out.mrcs", np.arange(COUNT, dtype=np.int32), (SIDE, SIDE), None)
    with Journal(source.parent / JOURNAL_NAME) as journal:
        journal.begin(Undertaking("denoise"))
        with Output([stack], source.parent, journal, dtype="float32", label="test", skip_bad=False) as output:
            feeding = Feeding(BATCHES_PER_WORKER, **given)
            denoise_stacks(output, workers, {(SIDE, SIDE): BATCH}, feeding, QUIET)
        return output.result


def test_all_devices_work_at_the_same_time(source: Path) -> None:
    # nobody passes before all four are there: a run in which one waits for another does not end
    meeting = threading.Barrier(4, timeout=300)
    done = [0] * 4

    def on(device: int) -> Worker:
        def work(images: Images, stack: StackPlan, pieces: Sequence[Piece]) -> Denoised:
            meeting.wait()
            done[device] += 1
            return Denoised(2 * images, {}, {})

        return work

    denoise(source, [on(device) for device in range(4)], readers=4)
    assert done == [COUNT // BATCH // 4] * 4
    np.testing.assert_array_equal(read_stack(source.parent / "out.mrcs"), 2 * read_stack(source))


def test_a_device_that_never_answers_does_not_hang_the_run(source: Path) -> None:
    taken, repaired = threading.Event(), threading.Event()

    def hang(images: Images, stack: StackPlan, pieces: Sequence[Piece]) -> Denoised:
        taken.set()
        repaired.wait()
        return Denoised(images, {}, {})

    def work(images: Images, stack: StackPlan, pieces: Sequence[Piece]) -> Denoised:
        taken.wait()  # else it might do all of the work before the other begins
        return Denoised(images, {}, {})

    try:
        with pytest.raises(DeviceError, match=r"not come back for 0\.5 s: a device hangs"):
            denoise(source, [work, hang], patience_seconds=0.5)
        # a thread that is no daemon would keep the program from ending
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "denoise")
    finally:
        repaired.set()
    assert not (source.parent / "out.mrcs").exists()


def test_a_format_that_one_of_two_kinds_of_gpu_lacks_is_not_taken(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"old": "fp16", "new": "bf16"}
    for room in ("engine", "devices"):
        monkeypatch.setattr(
            f"cryohush.core.inference.{room}.kind_of", lambda device: ("old", "new")[device.index]
        )
    monkeypatch.setattr(
        "cryohush.core.inference.engine.choose_precision",
        lambda device, requested: (best[("old", "new")[device.index]], "its flags"),
    )
    monkeypatch.setattr("cryohush.core.inference.engine.choose_batch_size", lambda *_: 1)
    gpus = LocalDevices([torch.device("cuda", number) for number in range(2)])
    choices, reason = gpus.ask(choose, Weights.of(model), DenoiseOptions(), [(16, 16)], False)
    assert (choices.precision, reason) == ("fp32", "no other suits all of old, new")


def test_images_come_back_from_a_device_as_they_went() -> None:
    images = noise(2, 5, 7)
    np.testing.assert_array_equal(
        devices.download(devices.upload(images, torch.device("cpu"))), images, strict=True
    )
