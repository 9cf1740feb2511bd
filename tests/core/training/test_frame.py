"""The frame of all loops: what an interruption, a full disk or a damaged file leaves, and what is told."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import Aborted, CryohushError, InputError, OutputError
from cryohush.core.job_context import JobContext
from cryohush.core.models.weights import load_model
from cryohush.core.training import data
from cryohush.core.training import record as record_module
from cryohush.core.training.record import MEANINGS, Preview, PreviewRow, Record, _curves, meanings_of
from cryohush.core.training.run import train


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).module.state_dict()


def stopped_at(config: TrainingConfig, folder: Path, step: int) -> None:
    """A run that is interrupted before a step."""
    calls = iter(range(1000))
    with pytest.raises(Aborted, match=f"stopped at step {step}; run again with --resume"):
        train(config, folder, context=JobContext(should_stop=lambda: next(calls) == step))


@pytest.mark.parametrize("torn", ['{"step": 4, "sec', "", "\x00\x00\x00", None])
def test_a_torn_log_is_written_anew_when_the_run_goes_on(
    config: TrainingConfig, tmp_path: Path, torn: str | None
) -> None:
    whole = weights_of(train(config, tmp_path / "whole"))
    stopped_at(config, tmp_path / "torn", 6)
    log = tmp_path / "torn/log.jsonl"
    if torn is None:
        log.unlink()
    else:
        log.write_text(torn)
    resumed = weights_of(train(config, tmp_path / "torn", resume=True))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    one, other = read_log(tmp_path / "whole"), read_log(tmp_path / "torn")
    for line in (*one, *other):
        del line["seconds"]
    # the mean loss is over steps before and after the interruption
    assert one == other
    assert [line["step"] for line in other] == [4, 8, 12]


@pytest.mark.parametrize("kept_share", [0.0, 0.01, 0.5, 0.999])
def test_a_damaged_state_ends_in_one_clear_line(
    config: TrainingConfig, tmp_path: Path, kept_share: float
) -> None:
    stopped_at(config, tmp_path, 5)
    state = tmp_path / "last.pt"
    contents = state.read_bytes()
    state.write_bytes(contents[: int(kept_share * len(contents))])
    with pytest.raises(InputError, match=r"last\.pt: the saved state .* Delete it, and --resume") as raised:
        train(config, tmp_path, resume=True)
    assert "\n" not in str(raised.value)
    state.unlink()
    train(config, tmp_path, resume=True)
    assert len(read_log(tmp_path)) == 3


def test_a_state_that_is_something_else_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    stopped_at(config, tmp_path, 5)
    for contents in ([1, 2], {"step": 1}, {"format": 2, "config": config.model_dump_json()}):
        torch.save(contents, tmp_path / "last.pt")
        with pytest.raises(InputError, match="cut off or damaged"):
            train(config, tmp_path, resume=True)
    torch.save({"step": 1, "config": config.model_dump_json()}, tmp_path / "last.pt")
    with pytest.raises(CryohushError, match="by another version of cryohush"):
        train(config, tmp_path, resume=True)


def test_damaged_and_foreign_projections_are_made_again(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, lines, made = tmp_path / "bank.safetensors", [], []
    project = data.make_projection_bank
    monkeypatch.setattr(data, "make_projection_bank", lambda *a, **k: made.append(1) or project(*a, **k))

    def batch(**changes: Any) -> torch.Tensor:
        lines.clear()
        section = config.data.model_copy(update=changes)
        particles = data.SimulatedParticles(section, held_out=False, seed=5, cache=cache, log=lines.append)
        return particles.batch(0, 4)[1]

    first = batch()
    assert torch.equal(batch(), first)
    assert len(made) == 1
    # what projections do not depend on leaves them
    batch(imaging=config.data.imaging.model_copy(update={"snr": (0.3, 0.3)}))
    assert len(made) == 1
    for share in (0.0, 0.3, 0.99):
        contents = cache.read_bytes()
        cache.write_bytes(contents[: int(share * len(contents))])
        assert torch.equal(batch(), first)
        assert lines[0].endswith("cut off or damaged: it is made again")
    for changes in ({"projections_per_volume": 4}, {"held_out": ("two",)}, {"diameter_share": (0.5, 0.6)}):
        changed = batch(**changes)
        assert lines[0].endswith("made for other settings: it is made again")
        assert not torch.equal(changed, first)
    batch()
    structure = config.data.structures / "one.pdb"
    structure.write_text(structure.read_text().replace("ATOM      1", "ATOM    151"))
    batch()
    assert lines[0].endswith("made for other settings: it is made again")


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    """As on a full disk: writing beyond that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [20, 300, 8000, 20_000, 60_000])
def test_a_disk_that_takes_no_more_is_said_in_one_line(
    config: TrainingConfig, tmp_path: Path, n_bytes: int
) -> None:
    with files_no_larger_than(n_bytes), pytest.raises(OutputError, match="cannot be written") as raised:
        train(config, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "run").glob("*.part"))
    train(config, tmp_path / "run", resume=True)
    assert len(read_log(tmp_path / "run")) == 3


def test_a_run_that_patience_ended_stays_ended(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = {**tiny["optimisation"], "steps": 400, "patience": 1, "ema_decay": 0.0, "learning_rate": 0.3}
    config = TrainingConfig.model_validate({**tiny, "optimisation": options})
    first = weights_of(train(config, tmp_path))
    lines = read_log(tmp_path)
    assert lines[-1]["step"] < 400
    again = weights_of(train(config, tmp_path, resume=True))
    assert read_log(tmp_path) == lines
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_each_figure_is_explained_once_and_the_time_to_go_is_told(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    told: list[str] = []
    done: list[tuple[int, int]] = []
    config = TrainingConfig.model_validate({**tiny, "optimisation": {**tiny["optimisation"], "steps": 8}})
    train(config, tmp_path, context=JobContext(log=told.append, progress=lambda *n: done.append(n)))
    lines = [line for line in told if line.startswith("step ")]
    assert len(lines) == 2
    for name in ("loss", "score"):
        assert sum(line.startswith(f"{name}: ") for line in told) == 1
        assert all(f" {name} " in line for line in lines)
    assert all(line.endswith(" s to go") for line in lines)
    assert done == [(step, 8) for step in range(9)]
    # one range of SNR: the error in it is the score, and is not told twice
    assert set(read_log(tmp_path)[-1]) == {"step", "seconds", "loss", "score"}
    assert meanings_of({"step": 1, "iou_particle": 0.3}) == [f"iou_…: {MEANINGS['iou']}"]


def test_ranges_of_snr_are_told_where_there_are_several(tiny: dict[str, Any], tmp_path: Path) -> None:
    imaging = {"snr": [0.02, 1.0]}
    config = TrainingConfig.model_validate({**tiny, "data": {**tiny["data"], "imaging": imaging}})
    train(config, tmp_path)
    line = read_log(tmp_path)[-1]
    bands = [value for name, value in line.items() if name.startswith("nmse_snr_")]
    assert len(bands) > 1
    assert line["score"] == pytest.approx(float(np.exp(np.mean(np.log(bands)))))


def test_only_the_first_process_writes_and_tells(config: TrainingConfig, tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fabric, "is_global_zero", property(lambda self: False))
        told: list[str] = []
        train(config, tmp_path, context=JobContext(log=told.append))
    assert told == []
    # the projections are what every process needs
    assert {path.name for path in tmp_path.iterdir() if path.name != "structures"} - {"ctf.npy"} == {
        "projections-train.safetensors",
        "projections-held-out.safetensors",
    }


def test_losses_and_held_out_scores_have_axes_of_their_own() -> None:
    lines = [{"step": 20.0, "loss": 10.0, "score": 1.0004}, {"step": 40.0, "loss": 0.1, "score": 1.0001}]
    above, below = _curves(lines).axes
    assert [line.get_label() for line in above.lines] == ["loss"]
    assert [line.get_label() for line in below.lines] == ["score"]
    assert above.get_yscale() == "log"
    # a score that hardly changes is not told as powers of ten
    assert below.get_yscale() == "linear"
    assert below.get_ylabel() == "held-out images"


def test_the_picture_names_its_rows_and_shares_the_greys_of_a_column(tmp_path: Path) -> None:
    """Two columns of one ramp, one of them ten times as strong: alike on greys of their own."""
    ramp = torch.arange(32.0).expand(32, 32)
    images = torch.stack([ramp, 10 * ramp + 3])
    scales = {"noisy": (images, 0), "denoised": (images, 1), "clean": (0.5 * images, 1)}
    rows = [PreviewRow(name, *row) for name, row in scales.items()]
    record = Record(tmp_path, 0)
    record.write([{"step": 1, "loss": 1.0}], Preview(rows, ["SNR 1", "SNR 2"], 2.0))
    record.close()
    picture = imread(tmp_path / "validation.png")[..., :3]
    grey = picture[picture.std(axis=2) < 0.01]
    # ramps from black to white, on a white page with black letters
    assert grey.min() < 0.1
    assert grey.max() > 0.9
    middle = picture.shape[1] // 2
    assert picture[:, middle:].mean() == pytest.approx(picture[:, :middle].mean(), abs=0.1)


def test_a_quick_run_draws_its_first_and_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "PICTURE_SECONDS", 3600.0)  # also a slow machine is quick
    preview = Preview([PreviewRow("noisy", torch.rand(2, 8, 8), 0)], ["1", "2"])
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    record = Record(tmp_path, 0)
    drawn = []
    for number, last in ((1, False), (2, False), (3, True)):
        record.write(lines[:number], preview, last=last)
        drawn.append([(tmp_path / name).read_bytes() for name in ("curves.png", "validation.png")])
    record.close()
    assert drawn[0] == drawn[1]
    # curves of more lines, and a picture that names its step
    assert all(one != other for one, other in zip(drawn[1], drawn[2], strict=True))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
