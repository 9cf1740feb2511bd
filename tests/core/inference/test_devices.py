"""Devices and number formats are what was asked for, or an error."""

from __future__ import annotations

import sys

import pytest
import torch

from cryohush.core.errors import ConfigurationError, DeviceError
from cryohush.core.inference import devices
from cryohush.core.inference.devices import (
    choose_batch_size,
    choose_precision,
    keep_freed_memory,
    prepare,
    resolve_devices,
)
from cryohush.core.models.weights import LoadedModel

CPU = torch.device("cpu")


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("cpu", 2, ["cpu"]),
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("", 2, ["cuda:0", "cuda:1"]),
        (",", 0, ["cpu"]),
        (" CUDA ", 2, ["cuda:0", "cuda:1"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cuda:0,1", 2, ["cuda:0", "cuda:1"]),
        ("1,0", 2, ["cuda:1", "cuda:0"]),
        ("0:1", 2, ["cuda:0", "cuda:1"]),
        ("0,0", 1, ["cuda:0"]),
    ],
)
def test_the_devices_that_a_text_names(
    monkeypatch: pytest.MonkeyPatch, text: str, count: int, expected: list[str]
) -> None:
    see_gpus(monkeypatch, count)
    assert [str(device) for device in resolve_devices(text)] == expected


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("cuda", 0, "GPU 0 was asked for, but no CUDA GPU is visible"),
        ("0", 0, "GPU 0 was asked for, but no CUDA GPU is visible"),
        ("cuda:0,2", 2, "GPU 2 was asked for, but only GPUs 0 to 1 are visible"),
    ],
)
def test_an_absent_gpu_is_an_error_and_never_the_cpu(
    monkeypatch: pytest.MonkeyPatch, text: str, count: int, expected: str
) -> None:
    see_gpus(monkeypatch, count)
    with pytest.raises(DeviceError, match=expected):
        resolve_devices(text)


@pytest.mark.parametrize("text", ["tpu", "cuda:x", "-1", "0;1"])
def test_a_text_that_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected auto, cpu, or GPUs"):
        resolve_devices(text)


def test_fp16_is_refused_on_the_cpu(model: LoadedModel) -> None:
    with pytest.raises(DeviceError, match="fp16 needs a GPU"):
        choose_precision(CPU, "fp16", model.module)


def test_a_precision_that_was_asked_for_is_not_measured(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_seconds_per_batch", lambda *_: pytest.fail("measured"))
    assert choose_precision(CPU, "bf16", model.module)[0] == "bf16"


@pytest.mark.parametrize(("gain", "expected"), [(3.0, "bf16"), (1.0, "fp32"), (0.2, "fp32")])
def test_auto_takes_the_format_that_is_measured_faster(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, gain: float, expected: str
) -> None:
    seconds = {"fp32": 1.0, "bf16": 1.0 / gain}
    monkeypatch.setattr(devices, "_seconds_per_batch", lambda module, device, precision: seconds[precision])
    precision, reason = choose_precision(CPU, "auto", model.module)
    assert precision == expected
    assert f"{gain:.1f} times as fast" in reason


def test_measuring_leaves_the_number_of_threads_alone(model: LoadedModel) -> None:
    before = torch.get_num_threads()
    precision, _ = choose_precision(CPU, "auto", model.module)
    assert precision in ("fp32", "bf16")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("shape", [(16, 16), (128, 128), (129, 131), (4096, 4096)])
def test_a_cpu_batch_has_at_least_an_image_and_at_most_its_share_of_pixels(
    model: LoadedModel, shape: tuple[int, int]
) -> None:
    size = choose_batch_size(CPU, "fp32", model.module, shape)
    assert size >= 1
    assert size == 1 or size * shape[0] * shape[1] <= devices.CPU_BATCH_PX


def test_preparing_copies_the_network(model: LoadedModel) -> None:
    prepared = prepare(model.module, CPU, "bf16")
    assert {parameter.dtype for parameter in prepared.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
