"""A child process that copies the images instead of denoising them, or ends badly, as its argument says.

It needs no torch, so a test of what the parent does costs little.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cryohush.core.inference.plan import plan_stacks, read_images
from cryohush.core.io.files import write_text
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.io.particles import ParticleSet


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def copy(task: dict[str, Any]) -> dict[str, Any]:
    output = Path(task["output"])
    images = read_images(task["source"], root=Path(task["root"]))
    stacks = plan_stacks(images)
    for stack in stacks:
        (output / stack.name).parent.mkdir(parents=True, exist_ok=True)
        with StackReader(stack.source) as reader:
            pixels = reader.read(stack.indices)
        with StackWriter(output / stack.name, pixels.shape, pixel_size_angstrom=1.5, label="copy") as writer:
            writer.write(pixels)
    if isinstance(images, ParticleSet):
        images.write_cs(output / "particles.cs", [stack.name for stack in stacks])
    for name in ("cryohush.json", "logfile.pdf", "montage.png"):
        (output / name).write_bytes(b"picture")
    return {
        "plots": {"Raw, denoised and removed images.": str(output / "montage.png")},
        "lines": ["version: fake", f"model: {task['options']['model']}"],
        "grey_ranges": [] if isinstance(images, ParticleSet) else [(0.0, 40.0)] * len(stacks),
    }


def tell_ready(task: dict[str, Any]) -> None:
    """Say which process this is, in a file that is whole as soon as it is there."""
    write_text(Path(task["output"], "ready"), str(os.getpid()))


def main() -> int:
    task, kind = json.load(sys.stdin), sys.argv[1]
    if task["task"] == "check":
        say(result={})
        return 0
    say(done=1, total=24)
    if kind == "copy":
        say(log="copying")
        say(result=copy(task))
    elif kind == "options":
        Path(task["output"], "task.json").write_text(json.dumps(task))
        say(error="that is all", details="")
        return 1
    elif kind == "report":
        Path(task["output"], "task.json").write_text(json.dumps(task))
        picture = Path(task["output"], "shown.png")
        picture.write_bytes(b"picture")
        say(result={"plots": {"A picture.": str(picture)}, "lines": ["a line"]})
    elif kind == "wait":
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        tell_ready(task)
        while not stopped:
            time.sleep(0.01)
        Path(task["output"], "stopped").touch()
        say(error="stopped", details="")
        return 1
    elif kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell_ready(task)
        time.sleep(600)
    elif kind == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "SIGSEGV":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "error":
        say(error="the image 3 is constant", details="")
        return 1
    elif kind == "traceback":
        say(error="unexpected ValueError: odd", details="Traceback\n" + 80000 * "x" + "\nValueError: odd")
        return 1
    elif kind == "silent":
        print("a warning of a library", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
