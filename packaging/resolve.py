"""Which versions pip takes for each Python, of wheels alone and without installing anything.

    python packaging/resolve.py            # Python 3.11 to 3.14
    python packaging/resolve.py 3.12       # one of them

All extras are resolved together, with the tested versions of constraints.txt, for Linux on x86-64, whatever
this machine is. Prints a line for each Python, and ends with 1 if something has no wheel that fits.
"""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# pip takes a wheel for an older glibc only where it is named; 2.28 is that of RHEL 8
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in range(28, 16, -1)), "manylinux2014_x86_64")


def requirements() -> list[str]:
    """Return all that setup.cfg requires, for every extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [line.replace(" ", "") for line in lines if line and not line.startswith("#")]


def resolve(python: str) -> dict[str, str] | None:
    """Return name to version of all that pip would install, or None where it finds nothing that fits."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--target", folder, "--report", f"{folder}/report.json", "--only-binary", ":all:"]
        command += ["--python-version", python, *(f"--platform={name}" for name in PLATFORMS)]
        command += ["--constraint", str(ROOT / "constraints.txt"), *requirements()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print("\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")))
            return None
        report = json.loads(Path(folder, "report.json").read_text())
    found = (item["metadata"] for item in report["install"])
    return {item["name"].lower(): item["version"] for item in found}


def main(pythons: list[str]) -> int:
    failed = 0
    for python in pythons or PYTHONS:
        found = resolve(python)
        failed += found is None
        what = "does not resolve"
        if found:
            cuda = found.get("nvidia-cuda-runtime", "none")
            what = f"{len(found)} packages, torch {found['torch']}, CUDA {cuda}"
        print(f"Python {python}: {what}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
