"""Devices and number formats are what was asked for, or an error."""

from __future__ import annotations

import sys
from pathlib import Path

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
from cryohush.core.models import precision as formats
from cryohush.core.models.precision import cpu_flags
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


def test_fp16_is_refused_on_the_cpu() -> None:
    with pytest.raises(DeviceError, match="fp16 needs a GPU"):
        choose_precision(CPU, "fp16")


def test_a_precision_that_was_asked_for_is_taken() -> None:
    assert choose_precision(CPU, "bf16") == ("bf16", "as asked for")
    assert choose_precision(CPU, "fp32") == ("fp32", "as asked for")


CPUINFO = (
    "processor\t: 0\nvendor_id\t: {}\n{}\t\t: fpu sse2 {}\nbugs\t\t: spectre_v1 bf16\n\nprocessor\t: 1\n"
)


@pytest.mark.parametrize(
    ("line", "flags", "expected"),
    [
        ("flags", "avx2 fma", "fp32"),
        ("flags", "avx512f avx512vl", "fp32"),
        ("flags", "avx512f avx512_bf16 avx2", "bf16"),
        ("flags", "amx_tile amx_bf16", "bf16"),
        ("Features", "asimd bf16 sve", "bf16"),
        ("Features", "asimd", "fp32"),
    ],
)
def test_auto_on_the_cpu_goes_by_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, flags: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format("x", line, flags))
    found = cpu_flags(tmp_path / "cpuinfo")
    assert set(flags.split()) <= found
    monkeypatch.setattr(formats, "cpu_flags", lambda: found)
    precision, reason = choose_precision(CPU, "auto")
    assert precision == expected
    assert "processor" in reason
    assert cpu_flags(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")],
)
def test_auto_on_a_gpu_goes_by_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precision, reason = choose_precision(torch.device("cuda", 0), "auto")
    assert precision == expected
    assert f"{capability[0]}.{capability[1]}" in reason


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
