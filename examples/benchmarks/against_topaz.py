"""Throughput and peak memory of cryohush beside Topaz-Denoise, on the CPU of this machine, in one run.

    python against_topaz.py --topaz-python PYTHON --output DIR [--model general] [--threads N] [--rounds 3]
        [--scores scores.json] [--particles TABLE.star]

PYTHON belongs to an environment with topaz-em 0.3.20 and, for its weights to load, a setuptools below 81.
Topaz takes its network from `--arch`; it ignores `--model`. White noise in boxes of 128 and 256 px is
denoised twice:

- whole process, `cryohush denoise` and `topaz denoise --stack`, reading and writing included, on a small
  and on a large stack. The rate is the difference of their sizes over the difference of their times, so
  start-up, which is listed by itself, does not count. cryohush gets larger stacks than Topaz, else it would
  have nothing to time. Peak memory is that of the process on its large stack, which flatters Topaz: it
  holds the whole stack. Topaz is started as `python -m topaz.commands.denoise`, which is what its program
  calls without importing its other commands: that starts faster and needs less memory.
- in the loop, images in memory, model loaded, by `cryohush_runner.py` and `topaz_runner.py`.

The programs take turns in each round, and medians over the rounds are compared. Threads are the same for all.
--scores, a file of independent_pairs.py, adds the quality of each. --particles, a table of boxes of one of
these sizes, is denoised with the rest of its stack, with a map, and without, start-up counted: Topaz is as
fast on any image, but what a stack adds costs time only where it adds something.

Writes against_topaz.md and .json to DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from processes import CRYOHUSH, run_measured, write_noise_stack

ARCHS = ("unet", "unet-small")
#: images of the small and the large stack by box side, and of the in-memory run
TOPAZ_IMAGES = {128: (16, 160), 256: (4, 40)}
CRYOHUSH_IMAGES = {128: (256, 4096), 256: (64, 1024)}
HERE = Path(__file__).parent


def main() -> None:
    arguments = parse_arguments()
    programs = [f"Topaz {arch}" for arch in ARCHS] + [f"cryohush {Path(arguments.model).stem}"]
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for box in arguments.boxes:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            make_inputs(Path(folder), box)
            for number in range(arguments.rounds):
                for program in programs:
                    key = f"{program}, {box} px"
                    for name, value in one_round(program, Path(folder), box, arguments).items():
                        measured[key][name].append(value)
                    print(f"round {number + 1}: {key}", flush=True)
    contexts = {name: on_table(name, arguments) for name in ("auto", "map", "none") if arguments.particles}
    report(measured, programs, contexts, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory beside Topaz-Denoise.")
    parser.add_argument("--topaz-python", required=True, help="python of an environment with topaz-em 0.3.20")
    parser.add_argument("--model", default="general", help="name or .safetensors file (default: general)")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--boxes", type=int, nargs="+", default=[128, 256], choices=[128, 256])
    parser.add_argument("--scores", type=Path, help="scores.json of independent_pairs.py")
    parser.add_argument("--particles", type=Path, help="table (.star) of a stack to denoise as well")
    parser.add_argument("--scratch", type=Path, help="folder for temporary stacks, up to 1 GB")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def make_inputs(folder: Path, box: int) -> None:
    for program, (small, large) in (("topaz", TOPAZ_IMAGES[box]), ("cryohush", CRYOHUSH_IMAGES[box])):
        write_noise_stack(folder / f"{program}_small.mrcs", small, box)
        write_noise_stack(folder / f"{program}_large.mrcs", large, box)
        # drawn and written image by image: this process must stay small for its children's peaks to be true
        count = large if program == "topaz" else min(large, 1024)
        images = np.lib.format.open_memmap(
            folder / f"{program}.npy", mode="w+", dtype=np.float32, shape=(count, box, box)
        )
        rng = np.random.default_rng(2)
        for image in images:
            image[:] = rng.standard_normal((box, box), dtype=np.float32)
        del images


def one_round(program: str, folder: Path, box: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one program once: start-up, rates and peak memory."""
    is_topaz = program.startswith("Topaz")
    kind = "topaz" if is_topaz else "cryohush"
    small_images, large_images = (TOPAZ_IMAGES if is_topaz else CRYOHUSH_IMAGES)[box]
    whole = {}
    for size in ("small", "large"):
        with tempfile.TemporaryDirectory(dir=folder) as output:
            command = whole_command(program, folder / f"{kind}_{size}.mrcs", Path(output), arguments)
            whole[size] = run_measured(command, arguments.threads)
    seconds_per_image = (whole["large"].seconds - whole["small"].seconds) / (large_images - small_images)
    loop = json.loads(
        run_measured(loop_command(program, folder, kind, arguments), arguments.threads).output.splitlines()[
            -1
        ]
    )
    return {
        "start_up_s": whole["small"].seconds - small_images * seconds_per_image,
        "whole_process_rate": 1.0 / seconds_per_image,
        "loop_rate": loop["images"] / loop["seconds"],
        "peak_bytes": whole["large"].peak_bytes,
    }


def on_table(context: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What it costs to denoise the user's table with a context; medians over the rounds."""
    options = ["--model", arguments.model, "--device", "cpu", "--precision", arguments.precision]
    options += ["--context", context, "--threads", str(arguments.threads)]
    runs = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            output = Path(folder) / "run"
            command = [*CRYOHUSH, "denoise", str(arguments.particles), "--output", str(output), *options]
            runs.append(run_measured(command, arguments.threads))
            record = json.loads((output / "cryohush.json").read_text(encoding="utf-8"))
    seconds = statistics.median(run.seconds for run in runs)
    (box,) = record["batch_size"]
    return {
        "box_px": int(box.split("x")[0]),
        "images": record["images"],
        "seconds": seconds,
        "rate": record["images"] / seconds,
        "peak_bytes": statistics.median(run.peak_bytes for run in runs),
        "groups": record["context"].get("groups", []),
    }


def whole_command(program: str, stack: Path, output: Path, arguments: argparse.Namespace) -> list[str]:
    threads = str(arguments.threads)
    if program.startswith("Topaz"):
        arch = program.removeprefix("Topaz ")
        topaz = [arguments.topaz_python, "-m", "topaz.commands.denoise", "--stack", str(stack)]
        return [*topaz, "--arch", arch, "-d", "-1", "-j", threads, "-o", str(output / "denoised.mrcs")]
    options = ["--model", arguments.model, "--device", "cpu", "--precision", arguments.precision]
    return [*CRYOHUSH, "denoise", str(stack), "--output", str(output / "run"), *options, "--threads", threads]


def loop_command(program: str, folder: Path, kind: str, arguments: argparse.Namespace) -> list[str]:
    files = [str(folder / f"{kind}.npy"), str(folder / f"{kind}_out.npy")]
    threads = ["--threads", str(arguments.threads)]
    if kind == "topaz":
        arch = program.removeprefix("Topaz ")
        return [arguments.topaz_python, str(HERE / "topaz_runner.py"), *files, "--arch", arch, *threads]
    options = ["--model", arguments.model, "--precision", arguments.precision]
    return [sys.executable, str(HERE / "cryohush_runner.py"), *files, *options, *threads]


def report(
    measured: dict[str, dict[str, list[float]]],
    programs: list[str],
    contexts: dict[str, dict[str, Any]],
    arguments: argparse.Namespace,
) -> None:
    medians = {
        key: {name: statistics.median(values) for name, values in found.items()}
        for key, found in measured.items()
    }
    scores = read_scores(arguments.scores)
    lines = [
        f"CPU, {arguments.threads} threads, medians of {arguments.rounds} rounds. Particles per second.",
        "",
        "| | start-up (s) | whole process | in the loop | peak memory (MB) | score |",
        "|---|---|---|---|---|---|",
    ]
    for key, found in medians.items():
        score = scores.get(key.rsplit(", ", 1)[0])
        quality = "" if score is None else f"{score:.4f}"
        lines.append(
            f"| {key} | {found['start_up_s']:.1f} | {found['whole_process_rate']:.1f} "
            f"| {found['loop_rate']:.1f} | {found['peak_bytes'] / 1e6:.0f} | {quality} |"
        )
    ratios: dict[str, dict[str, float]] = {}
    lines += ["", "| cryohush over | whole process | in the loop | peak memory |", "|---|---|---|---|"]
    for box in arguments.boxes:
        ours = medians[f"{programs[-1]}, {box} px"]
        for program in programs[:-1]:
            theirs = medians[f"{program}, {box} px"]
            ratio = {
                name: ours[name] / theirs[name] for name in ("whole_process_rate", "loop_rate", "peak_bytes")
            }
            ratios[f"{program}, {box} px"] = ratio
            lines.append(
                f"| {program}, {box} px | {ratio['whole_process_rate']:.1f}x | {ratio['loop_rate']:.1f}x "
                f"| {ratio['peak_bytes']:.2f}x |"
            )
    for name, found in contexts.items():
        topaz = medians.get(f"Topaz {ARCHS[0]}, {found['box_px']} px", {}).get("whole_process_rate")
        beside = "" if topaz is None else f", {found['rate'] / topaz:.1f}x Topaz {ARCHS[0]}"
        lines += [
            "",
            f"{found['images']} images of {found['box_px']} px, --context {name}: {found['seconds']:.1f} s "
            f"with start-up, {found['rate']:.1f} images a second{beside}, {found['peak_bytes'] / 1e6:.0f} MB",
            *found["groups"],
        ]
    table = "\n".join(lines) + "\n"
    result: dict[str, Any] = {
        "threads": arguments.threads,
        "rounds": measured,
        "medians": medians,
        "ratios": ratios,
        "contexts": contexts,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "against_topaz.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    (arguments.output / "against_topaz.md").write_text(table, encoding="utf-8")
    print("\n" + table)


def read_scores(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["name"]: row["all"]["score"] for row in rows}


if __name__ == "__main__":
    main()
