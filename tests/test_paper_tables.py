"""The tables of the papers: equal terms for all rows, every row a valid run, nothing left out unnamed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gemmi
import pytest
import torch

from cryohush.core.config.load import find_preset, read_yaml, validate
from cryohush.core.config.training import TrainingConfig
from cryohush.core.models import CRITICS, MODELS
from cryohush.core.simulation.image_formation import make_projection_bank
from cryohush.core.training.data import _OF_PROJECTIONS, find_maps, find_structures

BENCHMARKS = Path(__file__).parents[1] / "examples/benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[tuple[ModuleType, ModuleType]]:
    """`paper_tables` and `paper_rows`."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("paper_tables"), importlib.import_module("paper_rows")
    sys.path.remove(str(BENCHMARKS))


def sized(rows: ModuleType, row: Any, updates: int) -> TrainingConfig:
    values = read_yaml(find_preset(row.preset), row.overrides)
    rows.narrow(values)
    rows.set_length(values, updates, 16)
    return validate(values, TrainingConfig, row.name)


def test_every_row_is_a_configuration_whose_network_is_updated_as_often(
    benchmarks: tuple[ModuleType, ModuleType],
) -> None:
    tables, rows = benchmarks
    seen = set()
    for table in tables.TABLES.values():
        for row in table.rows:
            if (row.preset, row.overrides) in seen:
                continue
            seen.add((row.preset, row.overrides))
            config = sized(rows, row, 300)
            # a turn of a critic and its network may be cut in two
            assert rows.updates_of(config) in (300, 301), row.name
            MODELS[config.network.name](**config.network.arguments)
            if config.adversarial is not None:
                CRITICS[config.adversarial.critic.name](**config.adversarial.critic.arguments)
    assert len(seen) > 30


def test_rows_with_and_without_a_critic_differ_in_nothing_else(
    benchmarks: tuple[ModuleType, ModuleType],
) -> None:
    tables, rows = benchmarks
    table = {row.name: row for row in tables.TABLES["conformations_0.1"].rows}
    with_critic = sized(rows, table["(.5, .5)-GAN + l1"], 300)
    without = sized(rows, table["no critic + l1"], 300)
    alone = sized(rows, table["l1"], 300)
    assert without.adversarial is not None
    assert without.adversarial.weight == 0
    assert (with_critic.optimisation, with_critic.loss) == (without.optimisation, without.loss)
    for config in (with_critic, without):
        assert (config.network, config.loss) == (alone.network, alone.loss)
        for name in ("learning_rate", "betas", "weight_decay", "gradient_clip", "ema_decay", "batch_size"):
            assert getattr(config.optimisation, name) == getattr(alone.optimisation, name)


def test_every_adversarial_table_has_a_row_without_critic(
    benchmarks: tuple[ModuleType, ModuleType],
) -> None:
    for table in benchmarks[0].TABLES.values():
        assert any("adversarial.weight=0" in row.overrides for row in table.rows), table.name


def test_half_the_width_is_a_quarter_of_the_parameters(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    _, rows = benchmarks
    for preset in ("denoise_l2", "dncnn", "cgan_perceptual", "wgan_gray", "sr3"):
        network = read_yaml(find_preset(preset))["network"]
        count = [
            sum(parameter.numel() for parameter in MODELS[network["name"]](**arguments).parameters())
            for arguments in (network["arguments"], rows.halved(network["arguments"]))
        ]
        # biases and first and last layers go with the width, not with its square
        assert 0.23 < count[1] / count[0] < 0.30, preset


def test_a_smaller_box_has_the_same_dose(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    sizes = benchmarks[0].SIZES
    assert sizes["full"].snr(0.05) == 0.05
    assert sizes["tiny"].snr(0.05) == pytest.approx(0.2)  # four pixels of 128 px in one of 64


def test_baselines_without_their_library_are_left_out_and_named(
    benchmarks: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, rows = benchmarks
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bm3d" else find(name, *rest)
    )
    table = tables.TABLES["conformations_0.1"]
    assert rows.missing_baselines(table) == ["bm3d"]
    bench = rows.Bench(table, tables.SIZES["tiny"], None, {}, None)
    assert "bm3d" not in rows.reference_rows(bench)
    assert "covariance_wiener" in rows.reference_rows(bench)


def test_the_tables_of_the_page_are_those_that_were_measured() -> None:
    """`paper_document.py --write` changes nothing, and all that was kept has a place in the page."""
    sys.path.insert(0, str(BENCHMARKS))
    document = importlib.import_module("paper_document")
    sys.path.remove(str(BENCHMARKS))
    kept = json.loads(document.RESULTS.read_text(encoding="utf-8"))
    page = (BENCHMARKS.parents[1] / "docs/papers.md").read_text(encoding="utf-8")
    assert document.filled(page, kept) == page
    for name in kept:
        assert document.HEAD.format(name) in page


def test_every_claim_of_the_page_has_one_verdict_and_is_counted() -> None:
    page = (BENCHMARKS.parents[1] / "docs/papers.md").read_text(encoding="utf-8")
    verdicts = ("Reproduced", "In part", "Not reproduced", "Not testable here")
    parts = re.split(r"^## Paper (\d)$|^## Real particles$", page, flags=re.MULTILINE)[1:]
    papers = [(number, text) for number, text in zip(parts[::2], parts[1::2], strict=True) if number]
    assert [number for number, _ in papers] == list("12345")
    for number, text in papers:
        found = re.findall(r"^- \*\*(.+):\*\* \*", text, flags=re.MULTILINE)
        assert len(found) == len(re.findall(r"^- ", text, flags=re.MULTILINE))
        counts = [str(found.count(verdict)) for verdict in verdicts]
        assert sum(map(int, counts)) == len(found), set(found) - set(verdicts)
        assert f"| {number} | {' | '.join(counts)} |" in page


def test_what_a_paper_prints_stands_beside_the_row_that_is_meant() -> None:
    """Typed from the papers: tables 1 of [1] and [2], 2 of [3], 1, 2, 4, 5 and 6 of [5]."""
    sys.path.insert(0, str(BENCHMARKS))
    document = importlib.import_module("paper_document")
    sys.path.remove(str(BENCHMARKS))
    for table, row, figures in (
        ("noise_blocks", "cGAN + perceptual, trained on real noise", "25.06, 0.96"),
        ("noise_blocks", "cGAN + perceptual, trained on Gaussian noise", ""),
        ("low_snr_6cvm", "sr3 + U-Net", "26.78, 0.93"),
        ("low_snr_5vox_reassembled", "RobustGAN", "19.57, 0.90"),
        ("low_snr_6cvm", "DenoiseGAN", "20.69, 0.89"),
        ("sigma", "noisy", "13.08, 0.22"),
        ("sigma", "WGAN + grey values, Adam 1e-5, critic ADAM 5e-5", "20.99, 0.46"),
        ("sigma", "no critic", ""),
        ("conformations_0.05", "(.5, .5)-GAN + l1", "24.07, 0.80"),
        ("contamination", "WGANgp + l1, type 1, 0.3", "MSE 14.6e-3"),
        ("contamination", "l2, type 3, 0.1", "MSE 3.36e-3"),
        ("contamination", "(.5, .5)-GAN + l1, type 2, 0.2", "MSE 3.09e-3"),
        ("alpha_beta", "(-0.5, -0.5)-GAN + l1", "25.27, 0.80"),
        ("no_residuals", "WGANgp + l1", "25.09"),
        ("lambda", "lambda 500, l1 as sum", "25.01, 0.78"),
        ("alone", "(0, 0)-GAN + l1", "25.25, 0.78"),
        ("alone", "(0, 0)-GAN", ""),
        ("conformations_0.05", "progressive GAN + l1", "MSE 8.09e-3"),
        ("conformations_0.05", "progressive GAN", "MSE 10.1e-3"),
        ("low_snr_6cvm", "sr3 alone", "21.26, 0.82"),
        ("structural_noise", "noise2noise", "24.85, 0.91"),
        ("structural_noise", "DenoiseGAN, map cleaned", "20.69, 0.89"),
        ("structural_noise", "l2, model alone", ""),
    ):
        assert document.printed(table, row) == figures, (table, row)


def test_rows_of_another_run_stand_beside_those_that_were_kept() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    document = importlib.import_module("paper_document")
    sys.path.remove(str(BENCHMARKS))

    def table(size: str, *rows: tuple[str, int, int]) -> dict[str, Any]:
        return {"size": size, "rows": [{"row": name, "seed": seed, "updates": n} for name, seed, n in rows]}

    kept = table("tiny", ("l1", 1, 100), ("l2", 1, 100))
    found = table("tiny", ("l2", 1, 200), ("l2", 2, 200))
    assert document.joined(kept, found) == table("tiny", ("l1", 1, 100), ("l2", 1, 200), ("l2", 2, 200))
    assert document.joined(kept, table("small", ("l2", 1, 100))) == table("small", ("l2", 1, 100))
    assert document.joined(None, found) == found


def test_contamination_and_the_course_of_a_training_in_figures() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    document = importlib.import_module("paper_document")
    sys.path.remove(str(BENCHMARKS))

    def runs(*errors: float) -> list[dict[str, Any]]:
        return [{"seed": 1 + at, "cases": {"SNR 0.1": {"mse": one}}} for at, one in enumerate(errors)]

    by_row = {"l2, pure": runs(2.0, 4.0), "l2, type 1, 0.3": runs(3.0), "l1, type 1, 0.3": runs(1.0)}
    assert document.against_pure("l2, type 1, 0.3", by_row) == "1.50"  # of the run that both have
    by_row["l2, type 1, 0.3"] = runs(3.0, 8.0)  # times 1.5 and 2
    assert document.against_pure("l2, type 1, 0.3", by_row) == "1.75 ± 0.35"
    assert document.against_pure("l2, pure", by_row) == document.against_pure("l1, type 1, 0.3", by_row) == ""
    # up by a half and by a twentieth
    assert document.course([{"held_out_scores": [0.4, 0.2, 0.3, 0.315]}]) == "0.200, 0.315, 1 of 3"


def test_a_row_is_compared_with_another_run_by_run() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    document = importlib.import_module("paper_document")
    sys.path.remove(str(BENCHMARKS))

    def runs(name: str, *figures: tuple[int, float, float]) -> list[dict[str, Any]]:
        return [
            {"row": name, "seed": seed, "cases": {"SNR 0.1": {"psnr": psnr, "ssim": ssim}}}
            for seed, psnr, ssim in figures
        ]

    rows = runs("l1", (1, 20.0, 0.5), (2, 22.0, 0.6), (3, 30.0, 0.9))
    rows += runs("l2", (1, 19.0, 0.5), (2, 20.0, 0.4)) + runs("CWF", (0, 21.0, 0.5))
    # gains of 1 and 2 dB: deviation of the mean sqrt(0.5) / sqrt(2) = 0.5; of 0 and 0.2: a tenth
    assert document.difference(rows, "l1", "l2") == [
        "SNR 0.1, 2 run(s): PSNR +1.500 ± 0.500, SSIM +0.1000 ± 0.1000"
    ]
    # 20, 22 and 30 less 21: mean 3, standard error sqrt(28) / sqrt(3)
    (line,) = document.difference(rows, "l1", "CWF")
    assert line.startswith("SNR 0.1, 3 run(s): PSNR +3.000 ± 3.055,")
    (line,) = document.difference(rows, "CWF", "l1")
    assert line.startswith("SNR 0.1, 3 run(s): PSNR -3.000 ± 3.055,")
    for row, told in zip(rows, (40.0, 44.0, 50.0, 41.0, 43.0, 42.0), strict=True):
        row["cases"]["SNR 0.1"]["told_apart"] = {"mds": told}
    # -1 and 1; 40, 44 and 50 less 42: mean 8 / 3, deviation sqrt(19 / 3 * 4), over sqrt(3)
    (line,) = document.difference(rows, "l1", "l2")
    assert line.endswith(", told apart (MDS) +0.0 ± 1.0")
    (line,) = document.difference(rows, "l1", "CWF")
    assert line.endswith(", told apart (MDS) +2.7 ± 2.9")


def test_fine_detail_and_what_is_left_of_structural_noise(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    _, rows = benchmarks
    x = torch.arange(48.0).expand(48, 48)
    fine, coarse = (torch.cos(2 * math.pi * x / period)[None] for period in (3, 8))
    # Parseval: all of the fine wave, nothing of the coarse one
    assert float(rows.fine_detail(3 * fine + coarse).norm() / (3 * fine).norm()) == pytest.approx(1, abs=1e-5)
    held = torch.cat([4 * coarse + 1 + 0.5 * fine, 4 * fine - 2 + 0.5 * coarse])
    wanted, unwanted = torch.cat([coarse, fine]), torch.cat([fine, coarse])
    assert rows.part_left(held, wanted, unwanted) == pytest.approx(0.125, abs=1e-5)


def test_structural_noise_is_in_noisy_images_and_in_the_map_to_train_on(
    benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    tables, rows = benchmarks
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    generator = torch.Generator().manual_seed(1)
    for number, place in enumerate(40 * torch.randn(300, 3, generator=generator) + 100, 1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number, " ")
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*place.tolist())
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model("1"))
    structure[0].add_chain(chain)
    structure.write_pdb(str(tmp_path / "6cvm.pdb"))
    size = replace(tables.SIZES["tiny"], box_px=32, pose_order=0, stack=24)
    table = tables.TABLES["structural_noise"]
    bench = rows.Bench.make(table, size, tmp_path, None, tmp_path / "out", 1)
    test = bench.tests["SNR 0.03"]
    beside = test.structural
    assert float(beside.std()) > 0.1 * float(test.stack.clean.std())
    noise = test.stack.noisy - test.stack.clean - beside
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    row = next(row for row in table.rows if row.with_map)
    config = rows.training_config(bench, row, 1, tmp_path / "run")
    assert find_maps(config.data, find_structures(config.data, held_out=False))
    # the training cuts the same map into the same parts
    bank = make_projection_bank(
        find_structures(config.data, held_out=False),
        **{name: getattr(config.data, name) for name in _OF_PROJECTIONS} | {"projections_per_volume": 64},
        maps=find_maps(config.data, find_structures(config.data, held_out=False)),
        generator=generator,
        log=lambda line: None,
    )
    in_training = float(
        bank.structural_noise.float().var((1, 2)).mean() / bank.images.float().var((1, 2)).mean()
    )
    assert in_training == pytest.approx(
        float(beside.var((1, 2)).mean() / test.stack.clean.var((1, 2)).mean()), rel=0.2
    )


def test_the_clamp_opens_as_a_rigid_body_away_from_the_cleft() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    clamp = importlib.import_module("open_clamp")
    sys.path.remove(str(BENCHMARKS))
    model = gemmi.Model("1")
    # base at the origin, the clamp at x > 0, the other side of the cleft at y > 0
    for name, residues in (
        ("A", {10: (9, 1, 0), 200: (9, -1, 2), 340: (0, 0, 0), 1390: (0, 0, 0)}),
        ("B", {100: (0, 9, 0), 1110: (0, 0, 0), 1155: (0, 0, 0)}),
    ):
        chain = gemmi.Chain(name)
        for number, place in residues.items():
            residue = gemmi.Residue()
            residue.name, residue.seqid = "GLY", gemmi.SeqId(number, " ")
            atom = gemmi.Atom()
            atom.name, atom.pos = "CA", gemmi.Position(*place)
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)

    def places() -> list[list[float]]:
        return [atom.pos.tolist() for chain in model for residue in chain for atom in residue]

    def gap() -> float:
        return (model["A"][1][0].pos - model["B"][0][0].pos).length()

    before, closed = places(), gap()
    clamp.opened(model, 20.0)
    after = places()
    assert gap() > closed
    assert after[4] == before[4]
    assert math.dist(after[0], after[1]) == pytest.approx(math.dist(before[0], before[1]))
