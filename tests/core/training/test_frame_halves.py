"""Training on the sums of even and odd frames of a session: boxes of both at the same places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from particle_files import read_alike, write_stack

from cryohush.core.config.training import PairsConfig, TrainingConfig
from cryohush.core.errors import ConfigurationError, InputError, StarError
from cryohush.core.io.mrc import StackWriter
from cryohush.core.io.mrc_header import label_of_denoised
from cryohush.core.job_context import JobContext
from cryohush.core.models.weights import load_model
from cryohush.core.training.frame_halves import FOLDER, cut_pairs
from cryohush.core.training.pairs import PairedParticles
from cryohush.core.training.run import train

SIDE, BOX, N = (150, 170), 32, 3
HEAD = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n1 1.5\n\n"
HEAD += "data_micrographs\n\nloop_\n"


def write_session(folder: Path, *, sums: bool = True) -> Path:
    """Micrographs whose dark discs are alike in both sums, and whose noise is not."""
    rng = np.random.default_rng(1)
    rows, y, x = [], *np.ogrid[: SIDE[0], : SIDE[1]]
    for number in range(N):
        signal = np.zeros(SIDE)
        for row, column in PLACES[number]:
            signal -= 3.0 * ((y - row) ** 2 + (x - column) ** 2 <= 6**2)
        names = [f"job002/m{number}.mrc", f"job002/m{number}_EVN.mrc", f"job002/m{number}_ODD.mrc"]
        for name in names:
            image = (signal + rng.normal(size=SIDE))[None].astype(np.float32)
            write_stack(folder / name, image, 1.5)
        rows.append(f"{' '.join(names if sums else names[:1])} 1")
    labels = ["rlnMicrographName", *(["rlnMicrographNameEven", "rlnMicrographNameOdd"] if sums else [])]
    labels.append("rlnOpticsGroup")
    text = HEAD + "".join(f"_{label} #{k}\n" for k, label in enumerate(labels, 1)) + "\n".join(rows) + "\n\n"
    (folder / "micrographs.star").write_text(text)
    return folder / "micrographs.star"


# inside, and one too close to the border for a whole box
PLACES = [[(40, 50), (100, 90), (5, 80)], [(60, 60), (90, 120)], [(75, 30), (30, 130), (110, 100)]]


def write_coordinates(folder: Path, name: str = "job002/m{}.mrc") -> Path:
    lines = [
        "data_particles",
        "",
        "loop_",
        "_rlnMicrographName #1",
        "_rlnCoordinateX #2",
        "_rlnCoordinateY #3",
    ]
    lines += [f"{name.format(i)} {x}.2 {y}.4" for i, places in enumerate(PLACES) for y, x in places]
    path = folder / "particles.star"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def pairs(session: Path, **changes: Any) -> PairsConfig:
    return PairsConfig.model_validate({"noisy": session, "box_px": BOX, **changes})


@pytest.mark.parametrize("name", ["job002/m{}.mrc", "Extract/job009/m{}.mrc"])
def test_boxes_of_both_sums_lie_at_the_same_places(tmp_path: Path, name: str) -> None:
    config = pairs(write_session(tmp_path), coordinates=write_coordinates(tmp_path, name))
    lines: list[str] = []
    made = cut_pairs(config, tmp_path / "out", seed=1, context=JobContext(log=lines.append))
    inside = [(i, y, x) for i, places in enumerate(PLACES) for y, x in places if y >= BOX // 2]
    assert lines == [f"{len(inside)} pairs of boxes of even and odd frames, from {N} micrographs"]
    for path, suffix in ((made.noisy, "EVN"), (made.target, "ODD")):
        assert path is not None
        boxes = mrcfile.read(path.with_suffix(".mrcs"))
        for box, (i, y, x) in zip(boxes, inside, strict=True):
            whole = mrcfile.read(tmp_path / f"job002/m{i}_{suffix}.mrc").reshape(SIDE)
            top, left = y - BOX // 2, x - BOX // 2
            np.testing.assert_array_equal(box, -whole[top : top + BOX, left : left + BOX])
    assert not made.target_is_clean
    # again: what is there is used, unless something has changed
    cut_pairs(config, tmp_path / "out", seed=1, context=JobContext(log=lines.append))
    assert len(lines) == 1
    cut_pairs(
        config.model_copy(update={"box_px": 34}),
        tmp_path / "out",
        seed=1,
        context=JobContext(log=lines.append),
    )
    assert len(lines) == 2


def test_without_coordinates_boxes_lie_anywhere(tmp_path: Path) -> None:
    config = pairs(write_session(tmp_path), boxes_per_micrograph=20)
    made = cut_pairs(config, tmp_path / "out", seed=1)
    boxes = mrcfile.read(made.noisy.with_suffix(".mrcs"))
    assert boxes.shape == (20 * N, BOX, BOX)
    assert len({box.tobytes() for box in boxes}) == 20 * N


@pytest.mark.parametrize("name", ["job002/m{}", "me@lab/m{}"])
def test_both_sums_in_one_file_are_its_first_and_second_image(tmp_path: Path, name: str) -> None:
    table = write_session(tmp_path)
    text = table.read_text()
    for number in range(N):
        halves = [mrcfile.read(tmp_path / f"job002/m{number}_{half}.mrc")[None] for half in ("EVN", "ODD")]
        file = f"{name.format(number)}_both.mrcs"
        write_stack(tmp_path / file, np.concatenate(halves).reshape(2, *SIDE), 1.5)
        for place, half in enumerate(("EVN", "ODD"), 1):
            text = text.replace(f"job002/m{number}_{half}.mrc", f"{place}@{file}")
    (tmp_path / "both.star").write_text(text)
    coordinates = write_coordinates(tmp_path)
    apart = cut_pairs(pairs(table, coordinates=coordinates), tmp_path / "apart", seed=1)
    joined = cut_pairs(pairs(tmp_path / "both.star", coordinates=coordinates), tmp_path / "joined", seed=1)
    for one, other in ((apart.noisy, joined.noisy), (apart.target, joined.target)):
        assert one is not None
        assert other is not None
        one_boxes, other_boxes = (mrcfile.read(path.with_suffix(".mrcs")) for path in (one, other))
        np.testing.assert_array_equal(one_boxes, other_boxes)


def test_a_sum_that_is_image_0_is_refused(tmp_path: Path) -> None:
    table = write_session(tmp_path)
    table.write_text(table.read_text().replace("job002/m1_EVN.mrc", "0@job002/m1_EVN.mrc"))
    with pytest.raises(StarError, match=r"line 16: images are counted from 1, found 0@job002/m1_EVN"):
        cut_pairs(pairs(table), tmp_path / "out", seed=1)


def test_a_model_learns_from_the_session_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    session = write_session(tmp_path)
    options = {**tiny["optimisation"], "steps": 60, "batch_size": 16, "learning_rate": 3e-3}
    section = {"noisy": session, "box_px": BOX, "boxes_per_micrograph": 60, "validation_share": 0.34}
    changes = {"data": None, "pairs": section, "optimisation": options, "validate_every": 30}
    config = TrainingConfig.model_validate({**tiny, **changes})
    lines: list[str] = []
    model = load_model(train(config, tmp_path / "run", context=JobContext(log=lines.append)))
    assert model.card["training"]["pairs"]["noisy"] == "micrographs.star"
    for name in ("even", "odd"):
        read_alike(tmp_path / "run" / FOLDER / f"{name}.star")
    scores = [float(line.split("score ")[1].split(",")[0]) for line in lines if line.startswith("step ")]
    # a flat image leaves the target's noise and signal, of variance 1 and about 0.2, to the discs' share
    assert scores[-1] < scores[0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"box_px": 200}, InputError, "no box of 200 px lies within a micrograph"),
        ({"coordinates": "elsewhere"}, ConfigurationError, "has no particle on the micrographs of"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    session = write_session(tmp_path)
    if "coordinates" in changes:
        changes = {"coordinates": write_coordinates(tmp_path, "other{}.mrc")}
    with pytest.raises(error, match=message):
        cut_pairs(pairs(session, **changes), tmp_path / "out", seed=1)


@pytest.mark.parametrize("spoilt", ["denoised", "twice the same"])
def test_sums_have_noise_of_their_own(tmp_path: Path, spoilt: str) -> None:
    session = write_session(tmp_path)
    for number in range(N):
        even, odd = (tmp_path / f"job002/m{number}_{name}.mrc" for name in ("EVN", "ODD"))
        if spoilt == "denoised":
            image = mrcfile.read(odd)[None]
            label = label_of_denoised("m")
            with StackWriter(odd, image.shape, pixel_size_angstrom=1.5, label=label) as writer:
                writer.write(image)
        else:
            odd.write_bytes(even.read_bytes())
    problem = "was denoised already" if spoilt == "denoised" else "their noise is the same"
    with pytest.raises(InputError, match=problem):
        PairedParticles(cut_pairs(pairs(session), tmp_path / "out", seed=1), held_out=False, seed=1)


def test_a_session_without_sums_is_told_how_to_get_them(tmp_path: Path) -> None:
    session = write_session(tmp_path, sums=False)
    with pytest.raises(StarError, match=r"no columns rlnMicrographNameEven and .*--even_odd_split"):
        cut_pairs(pairs(session), tmp_path / "out", seed=1)
    session = write_session(tmp_path)
    (tmp_path / "job002/m1_ODD.mrc").unlink()
    with pytest.raises(StarError, match=r"micrographs\.star, line \d+: .*m1_ODD\.mrc is not there"):
        cut_pairs(pairs(session), tmp_path / "out", seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "b.star"}, "leave target and half_set out"),
        ({"half_set": 1}, "leave target and half_set out"),
    ],
)
def test_sections_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs(Path("m.star"), **changes)
    with pytest.raises(ValueError, match="coordinates need box_px"):
        PairsConfig(noisy=Path("m.star"), coordinates=Path("p.star"))


def test_a_list_of_coordinate_files_says_where_to_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = pairs(write_session(tmp_path), coordinates=Path("AutoPick/job004/autopick.star"))
    rows = []
    for number, places in enumerate(PLACES):
        file = Path(f"AutoPick/job004/m{number}_autopick.star")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{x}.2 {y}.4\n" for y, x in places)
        file.write_text(f"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{lines}\n")
        rows.append(f"job002/m{number}.mrc {file}\n")
    head = "data_coordinate_files\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographCoordinates #2\n"
    Path("AutoPick/job004/autopick.star").write_text(f"{head}{''.join(rows)}\n")
    by_list = mrcfile.read(cut_pairs(config, tmp_path / "a", seed=1).noisy.with_suffix(".mrcs"))
    config = config.model_copy(update={"coordinates": write_coordinates(tmp_path)})
    by_table = mrcfile.read(cut_pairs(config, tmp_path / "b", seed=1).noisy.with_suffix(".mrcs"))
    np.testing.assert_array_equal(by_list, by_table)


def test_both_sums_may_be_images_of_one_file(tmp_path: Path) -> None:
    session = write_session(tmp_path)
    config = pairs(session, coordinates=write_coordinates(tmp_path))
    apart = cut_pairs(config, tmp_path / "apart", seed=1)
    text = session.read_text()
    for number in range(N):
        names = [f"job002/m{number}_{half}.mrc" for half in ("EVN", "ODD")]
        both = np.stack([mrcfile.read(tmp_path / name).reshape(SIDE) for name in names])
        write_stack(tmp_path / f"job002/m{number}_AB.mrc", both, 1.5)
        for image, name in enumerate(names, 1):
            text = text.replace(name, f"{image}@job002/m{number}_AB.mrc")
    session.write_text(text)
    together = cut_pairs(config, tmp_path / "together", seed=1)
    for one, other in ((apart.noisy, together.noisy), (apart.target, together.target)):
        assert one is not None
        assert other is not None
        found, wanted = (mrcfile.read(path.with_suffix(".mrcs")) for path in (other, one))
        np.testing.assert_array_equal(found, wanted)
    write_stack(tmp_path / "job002/m1_AB.mrc", both[:1], 1.5)
    with pytest.raises(InputError, match=r"m1_AB\.mrc: expected two sums of frames, found 1 image\."):
        cut_pairs(config, tmp_path / "one", seed=1)
