"""Time and memory of a large `.cs` table: read it with its passthrough file, rewrite its images, save it.

    python examples/benchmarks/cs_table.py [--rows 500000]

The table is made up: 500 particles per stack, and the fields of an extraction with those of a refinement.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np
from processes import run_measured

PER_STACK = 500
BLOB = [("path", "S60"), ("idx", "<u4"), ("shape", "<u4", (2,)), ("psize_A", "<f4"), ("sign", "<f4")]
CTF = ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad", "phase_shift_rad", "scale")
ALIGNMENTS = ("error", "error_min", "resid_pow", "slice_pow", "image_pow", "cross_cor", "alpha", "weight")


MEASURED = """
import sys, time
from cryohush.core.io.cs import CsTable, read_images, rewrite
begin = time.perf_counter()
table = CsTable(sys.argv[1], [sys.argv[2]])
joined = time.perf_counter()
images = read_images(table)
read = time.perf_counter()
rewrite(table, sys.argv[3], [f"{name}s" for name in images.stack_names], images.stack, images.image)
written = time.perf_counter()
print(f"{len(table)} rows, {len(table.fields)} fields, {len(images.stack_names)} stacks")
print(f"join {joined - begin:.2f} s, read {read - joined:.2f} s, rewrite and save {written - read:.2f} s")
"""


def main() -> None:
    """Make the files, then measure a process that works on them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500_000, metavar="N", help="default: %(default)s")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: a child's peak memory starts from its parent's
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            own, passed = pool.apply(make_tables, (Path(folder), rows))
        size = (own.stat().st_size + passed.stat().st_size) / 1e6
        result = run_measured([sys.executable, "-c", MEASURED, str(own), str(passed), f"{folder}/new.cs"])
        importing = run_measured([sys.executable, "-c", "import cryohush.core.io.cs"])
    print(f"{size:.0f} MB in two files")
    print(result.output, end="")
    print(
        f"peak memory {result.peak_bytes / 1e6:.0f} MB, {importing.peak_bytes / 1e6:.0f} MB of it the program"
    )


def make_tables(folder: Path, rows: int) -> tuple[Path, Path]:
    """Write a table and its passthrough file, whose rows have another order."""
    rng = np.random.default_rng(0)
    uids = rng.permutation(np.arange(rows, dtype=np.uint64) * 7919 + 2**60)
    own = np.zeros(rows, [("uid", "<u8"), *((f"blob/{name}", *kind) for name, *kind in BLOB)])
    own["uid"] = uids
    stacks = np.array(
        [f"J42/extract/{n:021d}_patch_aligned_dw.mrc" for n in range(-(-rows // PER_STACK))], "S"
    )
    own["blob/path"], own["blob/idx"] = stacks[np.arange(rows) // PER_STACK], np.arange(rows) % PER_STACK
    own["blob/shape"], own["blob/psize_A"], own["blob/sign"] = 256, 1.1, -1
    fields = [(f"ctf/{name}", "<f4") for name in CTF] + [
        (f"alignments3D/{name}", "<f4") for name in ALIGNMENTS
    ]
    passed = np.zeros(rows, [("uid", "<u8"), *fields])
    passed["uid"] = rng.permutation(uids)
    for name, table in (("own.cs", own), ("passed.cs", passed)):
        with (folder / name).open("wb") as file:
            np.save(file, table)
    return folder / "own.cs", folder / "passed.cs"


if __name__ == "__main__":
    main()
