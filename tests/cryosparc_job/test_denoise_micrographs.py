"""The whole flow for micrographs, made of real particles, by the real client 5.0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryosparc_project import MICROGRAPH_BLOB, PARTICLES, Run
from double_store import Store
from double_v5 import Double5

from cryohush.core.io.mrc import StackReader, StackWriter

SHAPE = (384, 512)
NAMES = ("J43/motioncorrected/m0.mrc", "J43/motioncorrected/m1.mrc")


@pytest.fixture
def exposures(store: Store) -> np.ndarray:
    """Add the job J43 with two micrographs in mixed order: mosaics of real particles, protein dark."""
    with StackReader(PARTICLES) as reader:
        tiles = -reader.read(range(24))
    table = np.zeros(
        2,
        [
            *MICROGRAPH_BLOB,
            ("micrograph_blob/format", "S8"),
            ("micrograph_blob/is_background_subtracted", "<u4"),
            ("micrograph_blob/vmin", "<f4"),
            ("micrograph_blob/vmax", "<f4"),
            ("micrograph_blob/import_sig", "<u8"),
            ("ctf/df1_A", "<f4"),
        ],
    )
    table["uid"] = [2**62 + 5, 17]
    table["micrograph_blob/path"] = NAMES[::-1]
    table["micrograph_blob/shape"], table["micrograph_blob/psize_A"] = SHAPE, 1.5
    table["micrograph_blob/format"], table["micrograph_blob/is_background_subtracted"] = b"MRC/2", 1
    table["micrograph_blob/vmin"], table["micrograph_blob/vmax"] = -9, 9
    table["ctf/df1_A"] = [11000, 12000]
    store.add_source("exposure", table, "exposures")
    for number, name in enumerate(NAMES):
        mosaic = np.block([[tiles[12 * number + 4 * y + x] for x in range(4)] for y in range(3)])
        path = store.directory / name
        path.parent.mkdir(exist_ok=True)
        with StackWriter(path, (1, *SHAPE), pixel_size_angstrom=1.5, label="mosaic") as writer:
            writer.write(mosaic[None])
    return table


@pytest.mark.parametrize(("dtype", "mode"), [("float32", b"MRC/2"), ("float16", b"MRC/12")])
def test_micrographs_get_a_denoised_slot_beside_the_raw_one(
    denoise: Run, store: Store, exposures: np.ndarray, dtype: str, mode: bytes
) -> None:
    # the network's weights are random, so what it makes is told by the raw image blended in
    words = ("--micrographs", "J43:exposures", "--output-dtype", dtype, "--blend", "0.9")
    assert denoise(*words, particles=None) == 0
    job = store.external[0]
    assert job.status == "completed"
    assert job.outputs["exposures"].kind == "exposure"
    own = np.load(store.directory / job.uid / f"{job.uid}_exposures.cs")
    slot = "micrograph_blob_denoised"
    assert {name.partition("/")[0] for name in own.dtype.names} == {"uid", slot}
    assert own["uid"].tobytes() == exposures["uid"].tobytes()
    for field in ("shape", "psize_A", "idx", "is_background_subtracted"):
        assert own[f"{slot}/{field}"].tobytes() == exposures[f"micrograph_blob/{field}"].tobytes(), field
    assert own[f"{slot}/format"].tolist() == [mode, mode]
    for row in range(2):
        with StackReader(store.directory / exposures["micrograph_blob/path"][row].decode()) as reader:
            raw = reader.read([0])[0]
        with StackReader(store.directory / own[f"{slot}/path"][row].decode()) as reader:
            denoised = reader.read([0])[0]
        assert denoised.shape == SHAPE
        # each row has its own micrograph, with the contrast that it had
        assert np.corrcoef(raw.ravel(), denoised.ravel())[0, 1] > 0.9
        low, high = own[f"{slot}/vmin"][row], own[f"{slot}/vmax"][row]
        # the limits leave out about half a per cent at each end
        assert 0.002 < (denoised < low).mean() < 0.01
        assert 0.002 < (denoised > high).mean() < 0.01
    # what extraction reads passes through
    whole = store.load(job.uid, "exposures")
    for name in ("micrograph_blob/path", "micrograph_blob/vmin", "ctf/df1_A"):
        assert whole[name].tobytes() == exposures[name].tobytes(), name


def test_what_is_wrong_with_micrographs_is_said_before_a_job_is_made(
    denoise: Run,
    store: Store,
    double: Double5,
    exposures: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    copying: None,
) -> None:
    def run(source: str) -> str:
        assert denoise("--micrographs", source, particles=None) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    assert "is of type particle, expected exposure" in run("J42:particles")
    repeated = exposures.copy()
    repeated["uid"] = 5
    assert "1 uids of the exposures are repeated" in run(
        f"{store.add_source('exposure', repeated, 'exposures').uid}:exposures"
    )
    Path(store.directory / NAMES[1]).unlink()
    assert "m1.mrc" in run("J43:exposures")
    assert not store.external
