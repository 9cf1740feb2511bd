"""What bounds `cryohush denoise` on this machine, and how near its floor it comes.

    python roofline.py --output DIR [--boxes 128 256 384] [--seconds 10] [--threads N] [--device auto]
        [--precision auto] [--model general] [--scratch DIR] [--beside FOLDER --rounds 3]

In one run it measures

- the machine: reading (cached, and from the disk itself where the system drops its cache on request) and
  writing of the scratch folder, copying in memory, a large product in fp32 and in the job's format;
- the convolutions of the model's own shapes, each by itself, as the job runs them: channels last, a thread
  each;
- the stages of a job by themselves, a batch at a time: reading, normalisation, transfer to and from the
  device, network, inverse of the normalisation, writing;
- whole jobs, `cryohush denoise` as a process of its own on a stack of noise in boxes of each size, as many
  images as take about --seconds, beside a plain copy of the same bytes. A job of one batch gives the
  start-up, which is taken off.

The floor of a job is the larger of its arithmetic at the best rate of any of its convolutions (FLOPs by
torch.utils.flop_counter) and its bytes at the rates of the folder. On the CPU, arithmetic and memory are
timed by CPU time, and so is the job where its share of the floor is told: other programs then disturb less.

--beside takes turns with another version of cryohush, installed by `pip install --no-deps --target FOLDER`.
Writes roofline.json, roofline.md and roofline.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from machine_rates import CHUNK_BYTES, calls_per_second, measure_machine, synchronise
from processes import CRYOHUSH, Measured, run_measured, write_noise_stack
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cryohush.core.imaging.normalise import default_radius_px, denormalise, normalise
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import (
    DTYPES,
    Precision,
    available_threads,
    choose_batch_size,
    choose_precision,
    download,
    keep_freed_memory,
    prepare,
    resolve_devices,
    upload,
)
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.models.weights import LoadedModel, load_model

matplotlib.use("Agg")


# where the figure begins, in operations per second
LOWEST = 1e9


@dataclass(frozen=True)
class Layer:
    """A convolution of the model on a batch: its work, and how fast it goes by itself on all threads."""

    name: str
    flop: float
    #: input, output and weights, each once
    bytes: float
    flop_per_second: float


def main() -> None:
    arguments = parse_arguments()
    device = resolve_devices(arguments.device)[0]
    arguments.threads = arguments.threads or available_threads()
    keep_freed_memory()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    precision, _ = choose_precision(device, arguments.precision)
    result: dict[str, Any] = {"device": str(device), "threads": arguments.threads, "precision": precision}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        result["machine"] = measure_machine(Path(folder), device, precision, arguments.threads)
        say(result["machine"])
        boxes: dict[int, dict[str, Any]] = {}
        for box in arguments.boxes:
            boxes[box] = measure_box(
                Path(folder), box, model, device, precision, result["machine"], arguments
            )
            say({name: value for name, value in boxes[box].items() if name != "layers"})
    result["boxes"] = boxes
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "roofline.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = markdown(result)
    (arguments.output / "roofline.md").write_text(table, encoding="utf-8")
    draw(result, arguments.output / "roofline.png")
    print("\n" + table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What bounds a denoising job, and how near its floor it is.")
    parser.add_argument("--boxes", type=int, nargs="+", default=[128, 256, 384], help="pixels")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a job (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--device", default="auto", help="cpu, or a GPU (default: %(default)s)")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--model", default="general", help="name or .safetensors file (default: general)")
    parser.add_argument("--scratch", type=Path, help="folder for temporary stacks")
    parser.add_argument("--beside", type=Path, help="folder with another version, to take turns with")
    parser.add_argument("--rounds", type=int, default=1, help="of each job (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


# A box.


def measure_box(
    folder: Path,
    box: int,
    model: LoadedModel,
    device: torch.device,
    precision: Precision,
    machine: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Layers, stages and whole jobs with images of one size."""
    batch = choose_batch_size(device, precision, model.module, (box, box))
    network = prepare(model.module, device, precision)
    images = torch.randn(batch, 1, box, box, device=device)
    images = images.to(DTYPES[precision], memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images)
    flop = counter.get_total_flops() / batch
    layers = measure_layers(network, images, device, arguments.threads)
    stages = measure_stages(folder, box, batch, model, device, precision)
    found: dict[str, Any] = {"batch": batch, "flop": flop, "layers": [asdict(layer) for layer in layers]}
    found["stages"] = stages
    estimate = sum(stages.values()) / (1 if device.type == "cuda" else arguments.threads)
    count = batch * max(4, round(arguments.seconds / estimate / batch))
    found |= measure_jobs(folder, box, batch, count, arguments)
    peak = max(layer.flop_per_second for layer in layers)
    moved = 4 * box * box  # bytes read, and as many written
    found["floor"] = {
        "arithmetic": flop / peak,
        "disk": moved / machine["read_cached"] + moved / machine["write"],
        "memory": 2 * moved / machine["memory"],
    }
    found["peak"] = peak
    return found


def measure_layers(network: nn.Module, images: Tensor, device: torch.device, threads: int) -> list[Layer]:
    """Time each convolution of the network by itself, once for each shape."""
    calls: dict[Any, tuple[str, nn.Module, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.setdefault((module.weight.shape, inputs[0].shape), (name, module, inputs[0]))

        return hook

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    layers = []
    for name, module, x in calls.values():
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            y = module(x)
        flop = counter.get_total_flops()

        def call(module: nn.Module = module, x: Tensor = x) -> Callable[[], object]:
            own = x.clone()
            return lambda: module(own)

        rate = calls_per_second(call, device, threads)
        size = sum(tensor.numel() for tensor in (x, y, module.weight)) * x.element_size()
        layers.append(Layer(name, flop, size, flop * rate))
    return layers


def measure_stages(
    folder: Path, box: int, batch: int, model: LoadedModel, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Seconds per image of each stage on one thread, the others at rest; medians over some batches."""
    denoiser = Denoiser(model.module, device, precision)
    path, count = folder / "stages.mrcs", 6 * batch
    write_noise_stack(path, count, box)
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    seconds: dict[str, list[float]] = {}
    radius = default_radius_px((box, box))

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begin = clock()
        value = call()
        synchronise(device)
        seconds.setdefault(name, []).append((clock() - begin) / batch)
        return value

    with (
        StackReader(path) as reader,
        StackWriter(
            folder / "written.mrcs", reader.shape, pixel_size_angstrom=1.0, label="benchmark"
        ) as writer,
        torch.inference_mode(),
    ):
        for first in range(0, count, batch):
            raw = timed("reading", lambda first=first: reader.read(range(first, first + batch)))
            there = timed("to the device", lambda raw=raw: upload(raw, device))
            scaled, mean, std = timed("normalisation", lambda x=there: normalise(x, radius))
            out = timed("network", lambda x=scaled: denoiser.run(x))
            out = timed("inverse", lambda x=out, m=mean, s=std: denormalise(x, m, s))
            back = timed("from the device", lambda x=out: download(x))
            timed("writing", lambda x=back: writer.write(x))
    path.unlink()
    (folder / "written.mrcs").unlink()
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def measure_jobs(
    folder: Path, box: int, batch: int, count: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Whole processes on one batch and on many, by turns with another version; and a plain copy."""
    small, large = folder / "small.mrcs", folder / "large.mrcs"
    write_noise_stack(small, batch, box)
    write_noise_stack(large, count, box)
    versions: dict[str, Path | None] = {"job": None}
    if arguments.beside:
        versions["beside"] = arguments.beside
    runs: dict[str, list[tuple[Measured, Measured]]] = {name: [] for name in versions}
    for _ in range(arguments.rounds):
        for name, version in versions.items():
            runs[name].append((run_job(small, version, arguments), run_job(large, version, arguments)))
    found: dict[str, Any] = {"images": count, "copy_seconds": copy_seconds(large)}
    for name, pairs in runs.items():
        found[name] = {
            key: statistics.median(getattr(many, key) - getattr(few, key) for few, many in pairs)
            / (count - batch)
            for key in ("seconds", "cpu_seconds")
        }
        found[name]["start_up_seconds"] = statistics.median(few.seconds for few, _ in pairs)
        found[name]["start_up_cpu_seconds"] = statistics.median(few.cpu_seconds for few, _ in pairs)
        found[name]["whole_seconds"] = statistics.median(many.seconds for _, many in pairs)
    for path in (small, large):
        path.unlink()
    return found


def run_job(stack: Path, version: Path | None, arguments: argparse.Namespace) -> Measured:
    """Run `cryohush denoise` on a stack; `version` is a folder with another one of it."""
    with tempfile.TemporaryDirectory(dir=stack.parent) as output:
        command = [*CRYOHUSH, "denoise", str(stack), "--output", f"{output}/run", "--model", arguments.model]
        command += ["--device", arguments.device, "--precision", arguments.precision]
        command += ["--threads", str(arguments.threads)]
        if version is not None:
            command = ["env", f"PYTHONPATH={version.absolute()}", *command]
        return run_measured(command, arguments.threads)


def copy_seconds(stack: Path) -> float:
    """Seconds to read a stack in large pieces and to write it, on disk."""
    target, block = stack.with_suffix(".copy"), memoryview(bytearray(CHUNK_BYTES))
    begin = time.perf_counter()
    with stack.open("rb", buffering=0) as source, target.open("wb", buffering=0) as file:
        while count := source.readinto(block):
            file.write(block[:count])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


# What is told.


def cost(job: dict[str, float], result: dict[str, Any]) -> float:
    """Seconds per image: by the clock on a GPU; on the CPU its CPU time, shared evenly by the threads."""
    return job["seconds"] if result["device"] != "cpu" else job["cpu_seconds"] / result["threads"]


def floor(box: dict[str, Any]) -> float:
    """Seconds per image that a job cannot do without: arithmetic and disk overlap."""
    return max(box["floor"]["arithmetic"], box["floor"]["disk"])


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    machine, precision = result["machine"], result["precision"]
    lines = [
        f"{result['device']}, {result['threads']} threads, {precision}. Folder: "
        + ", ".join(
            f"{name.replace('_', ' ')} {machine[name] / 1e9:.1f} GB/s"
            for name in ("read_cached", "read_uncached", "write")
        )
        + f". Copying in memory: {machine['memory'] / 1e9:.0f} GB/s read and written. Large product: "
        + ", ".join(
            f"{name.removeprefix('product_')} {rate / 1e12:.2f} TFLOP/s"
            for name, rate in machine.items()
            if name.startswith("product")
        )
        + ".",
        "",
        "| box | particles per second | ms each | best convolution | floor: arithmetic | floor: disk "
        "| share of the floor | plain copy | start-up |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for box, found in result["boxes"].items():
        spent, copied = cost(found["job"], result), found["images"] / found["copy_seconds"]
        lines.append(
            f"| {box} px | {1 / spent:.0f} | {1e3 * spent:.2f} | {found['peak'] / 1e12:.2f} TFLOP/s "
            f"| {1e3 * found['floor']['arithmetic']:.2f} ms | {1e3 * found['floor']['disk']:.3f} ms "
            f"| {floor(found) / spent:.0%} | {copied:.0f} per second "
            f"| {found['job']['start_up_seconds']:.1f} s |"
        )
    names = list(dict.fromkeys(name for found in result["boxes"].values() for name in found["stages"]))
    lines += ["", f"| ms of one thread | {' | '.join(names)} | sum | whole job |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for box, found in result["boxes"].items():
        stages, whole = found["stages"], cost(found["job"], result)
        whole *= 1 if result["device"] != "cpu" else result["threads"]
        values = [*(stages[name] for name in names), sum(stages.values()), whole]
        lines.append(f"| {box} px | {' | '.join(f'{1e3 * value:.3f}' for value in values)} |")
    if any("beside" in found for found in result["boxes"].values()):
        lines += ["", "| | this version over the other one: speed | start-up |", "|---|---|---|"]
        for box, found in result["boxes"].items():
            ours, other = found["job"], found["beside"]
            start_up = ours["start_up_cpu_seconds"] / other["start_up_cpu_seconds"]
            lines.append(f"| {box} px | {cost(other, result) / cost(ours, result):.2f} | {start_up:.2f} |")
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Arithmetic against the bytes that it needs, under the roofs of the machine."""
    from matplotlib import pyplot

    machine, precision = result["machine"], result["precision"]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    intensity = np.geomspace(1, 1e5, 200)
    product = machine[f"product_{precision}"]
    # half of the job's bytes are read, half are written
    disk = 2 / (1 / machine["read_cached"] + 1 / machine["write"])
    for rate, name in ((machine["memory"], "memory"), (disk, "disk")):
        axes.plot(intensity, np.minimum(rate * intensity, product), color="0.4", linewidth=1)
        label, at = f"{name}, {rate / 1e9:.1f} GB/s", max(1.0, LOWEST / rate)
        axes.annotate(label, (at, rate * at), xytext=(8, 3), textcoords="offset points", fontsize=8)
    peak = max(found["peak"] for found in result["boxes"].values())
    for name, rate, above in (
        (f"large product, {precision}", product, True),
        (f"best convolution, {precision}", peak, False),
        ("large product, fp32", machine["product_fp32"], True),
    ):
        axes.axhline(rate, color="0.7", linewidth=0.8, linestyle="--")
        label, place = (
            f"{name}, {rate / 1e12:.2f} TFLOP/s",
            {"ha": "right", "va": "bottom" if above else "top"},
        )
        axes.annotate(label, (1e5, rate), xytext=(0, 0), textcoords="offset points", fontsize=8, **place)
    threads = 1 if result["device"] != "cpu" else result["threads"]
    for number, (box, found) in enumerate(result["boxes"].items()):
        color, layers = f"C{number}", found["layers"]
        axes.scatter(
            [layer["flop"] / layer["bytes"] for layer in layers],
            [layer["flop_per_second"] for layer in layers],
            color=color, marker="o", s=18, label=f"{box} px: layers by themselves",
        )  # fmt: skip
        moved = found["flop"] / (8 * int(box) ** 2)
        network = found["flop"] / found["stages"]["network"] * threads
        axes.scatter(moved, network, color=color, marker="s", label="network")
        axes.scatter(
            moved,
            found["flop"] / cost(found["job"], result),
            color=color,
            marker="*",
            s=90,
            label="whole job",
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP per second")
    axes.set_ylim(LOWEST, 3 * product)
    axes.legend(fontsize=8, loc="lower right", ncols=len(result["boxes"]))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
