"""Time and peak memory per micrograph of cryohush beside Topaz-Denoise, on this machine's CPU, in one run.

    python micrographs_against_topaz.py --topaz-python PYTHON --output DIR [--side 4096] [--rounds 1]

PYTHON is as for against_topaz.py. Micrographs of white noise are denoised by whole processes, reading and
writing included. cryohush takes one micrograph and several, so that its start-up, listed by itself, can be
told from the time of each further one; Topaz needs minutes for one, beside which its start-up is nothing. The
programs take turns in each round, and medians are compared. Writes micrographs_against_topaz.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from processes import CRYOHUSH, Measured, run_measured, write_noise_stack

MORE_MICROGRAPHS = 4


def main() -> None:
    arguments = parse_arguments()
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        make_inputs(folder, arguments.side)
        for number in range(arguments.rounds):
            for program, measure in (("cryohush", measure_cryohush), ("Topaz unet", measure_topaz)):
                for key, value in measure(folder, arguments).items():
                    found[program][key].append(value)
                print(f"round {number + 1}: {program} {dict(found[program])}", flush=True)
    report(found, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory on micrographs beside Topaz-Denoise.")
    parser.add_argument("--topaz-python", required=True, help="python of an environment with topaz-em 0.3.20")
    parser.add_argument("--model", default="general", help="name or .safetensors file (default: general)")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--side", type=int, default=4096, help="pixels (default: 4096)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1, help="default: 1, as Topaz takes minutes")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files, 1 GB")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def make_inputs(folder: Path, side: int) -> None:
    """Write one micrograph, and a table of several: the same pixels under other names."""
    write_noise_stack(folder / "0.mrc", 1, side)
    rows = ["0.mrc"]
    for number in range(1, MORE_MICROGRAPHS):
        (folder / f"{number}.mrc").hardlink_to(folder / "0.mrc")
        rows.append(f"{number}.mrc")
    text = "\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n"
    (folder / "micrographs.star").write_text(text + "".join(f"{row}\n" for row in rows) + "\n")


def measure_cryohush(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    threads = str(arguments.threads)
    options = ["--model", arguments.model, "--device", "cpu", "--precision", arguments.precision]

    def run(source: str) -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            command = [*CRYOHUSH, "denoise", str(folder / source), "--output", output, *options]
            return run_measured([*command, "--threads", threads], arguments.threads)

    one, several = run("0.mrc"), run("micrographs.star")
    seconds = (several.seconds - one.seconds) / (MORE_MICROGRAPHS - 1)
    return {
        "whole_s": one.seconds,
        "start_up_s": one.seconds - seconds,
        "each_s": seconds,
        "peak_bytes": one.peak_bytes,
        "peak_bytes_of_several": several.peak_bytes,
    }


def measure_topaz(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [arguments.topaz_python, "-m", "topaz.commands.denoise", str(folder / "0.mrc")]
        options = ["--arch", "unet", "-d", "-1", "-j", str(arguments.threads), "-o", output]
        measured = run_measured([*command, *options], arguments.threads)
    return {"whole_s": measured.seconds, "each_s": measured.seconds, "peak_bytes": measured.peak_bytes}


def report(found: dict[str, dict[str, list[float]]], arguments: argparse.Namespace) -> None:
    medians = {
        program: {key: statistics.median(values) for key, values in measured.items()}
        for program, measured in found.items()
    }
    ours, theirs = medians["cryohush"], medians["Topaz unet"]
    lines = [
        f"Micrographs of {arguments.side} x {arguments.side} px, CPU, {arguments.threads} threads, "
        f"{arguments.rounds} rounds.",
        "",
        "| | whole process, one micrograph (s) | each further one (s) | per minute | peak memory (MB) |",
        "|---|---|---|---|---|",
    ]
    for program, median in medians.items():
        lines.append(
            f"| {program} | {median['whole_s']:.1f} | {median['each_s']:.1f} | {60 / median['each_s']:.1f} "
            f"| {median['peak_bytes'] / 1e6:.0f} |"
        )
    lines += [
        "",
        f"cryohush is {theirs['whole_s'] / ours['whole_s']:.0f} times as fast for one micrograph, start-up "
        f"({ours['start_up_s']:.1f} s) included, and {theirs['each_s'] / ours['each_s']:.0f} times for each "
        f"further one; with {MORE_MICROGRAPHS} its peak memory is "
        f"{ours['peak_bytes_of_several'] / 1e6:.0f} MB.",
    ]
    table = "\n".join(lines) + "\n"
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "micrographs_against_topaz"
    record = {"side_px": arguments.side, "threads": arguments.threads, "rounds": found, "medians": medians}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print("\n" + table)


if __name__ == "__main__":
    main()
