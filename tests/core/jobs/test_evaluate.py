"""An evaluation's numbers are those of the metrics, whatever the chunks; its report shows them all."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from evaluation_files import BOX, MICROGRAPHS, NOISE, PIXEL_SIZE, Files, N, write_files, write_particles
from particle_files import read_alike

from cryohush.core.classical import baselines
from cryohush.core.cli import main
from cryohush.core.config.evaluate import BASELINES, IMAGE_METRICS, ClusteringSection, EvaluateConfig
from cryohush.core.errors import Aborted, CryohushError, ImageError, InputError, OutputError
from cryohush.core.evaluation import comparison
from cryohush.core.evaluation.comparison import RingSums, Sources, compare
from cryohush.core.evaluation.image_rows import batches
from cryohush.core.io.journal import JOURNAL_NAME
from cryohush.core.io.mrc import StackWriter
from cryohush.core.io.mrc_header import label_of_denoised
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.evaluate import run_evaluate
from cryohush.core.jobs.folder import Earlier
from cryohush.core.metrics import image
from cryohush.core.metrics.fourier import pooled_fourier_ring_correlation
from cryohush.core.metrics.independent import bootstrap_score
from cryohush.core.report.html import Picture, Section, write_html


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("particles"))


@pytest.fixture(scope="module")
def evaluated(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an evaluation with everything that a stack of particles allows."""
    output = tmp_path_factory.mktemp("evaluated")
    config = EvaluateConfig(
        denoised=files["denoised"], reference=files["clean"], twin=files["twin"], raw=files["raw"],
        baselines=("gaussian",), clustering=ClusteringSection(neighbours=5), threads=1,
    )  # fmt: skip
    run_evaluate(config, output, JobContext(command="cryohush evaluate <everything>"))
    return output


@pytest.fixture(scope="module")
def numbers(evaluated: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evaluated / "evaluation.json").read_text())
    return found


def tensors(files: Files) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(images) for name, images in files.images.items()}


def test_the_names_that_can_be_asked_for_are_those_that_exist() -> None:
    images = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))
    assert tuple(image.image_metrics(images, images, data_range=1.0)) == IMAGE_METRICS
    assert tuple(baselines.BASELINES) == BASELINES


def test_figures_against_clean_images_are_those_of_the_metrics(files: Files, numbers: dict[str, Any]) -> None:
    assert numbers["warnings"] == []
    images = tensors(files)
    span = image.grey_value_span(images["clean"])
    expected = image.image_metrics(images["denoised"], images["clean"], data_range=span)
    found = numbers["against_clean"]["denoised"]
    for name, values in expected.items():
        assert found[name]["mean"] == pytest.approx(float(values.mean()), rel=1e-5), name
    # the residual is -0.2 clean + 0.1 noise + 0.3, noise of 1.5: closed form, 4 s.e. of 24 k pixels
    clean = files.images["clean"].astype(np.float64)
    expected_mse = float(((0.3 - 0.2 * clean) ** 2).mean() + (0.1 * NOISE) ** 2)
    assert found["mse"]["mean"] == pytest.approx(expected_mse, rel=0.05)


def test_the_gain_is_the_difference_image_by_image_over_micrographs(
    files: Files, numbers: dict[str, Any]
) -> None:
    images = tensors(files)
    difference = image.correlation(images["denoised"], images["twin"]) - image.correlation(
        images["raw"], images["twin"]
    )
    groups = [str(i % MICROGRAPHS) for i in range(N)]
    expected = bootstrap_score(difference, groups, n_resamples=comparison.RESAMPLES)
    gain = numbers["against_twin"]["gain"]["correlation"]
    assert gain["mean"] == pytest.approx(expected.mean, abs=1e-6)
    assert gain["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)


def test_the_pooled_curve_is_that_of_all_images_together(files: Files, numbers: dict[str, Any]) -> None:
    images = tensors(files)
    for target, name in (("against_clean", "clean"), ("against_twin", "twin")):
        expected = pooled_fourier_ring_correlation(images["denoised"], images[name])
        # single precision
        np.testing.assert_allclose(numbers[target]["denoised"]["frc"], expected.numpy(), atol=1e-5)


def test_the_error_against_noisy_twins_is_that_against_the_clean_images(files: Files) -> None:
    images = tensors(files)
    sums = RingSums(MICROGRAPHS, (BOX, BOX))
    sums.add(images["denoised"], images["twin"], torch.arange(N) % MICROGRAPHS)
    rings = BOX // 2 + 1
    inside = torch.arange(rings) > 0
    value, _ = sums.unbiased_error(torch.full((rings,), NOISE**2), inside, best_scale=False)
    radius = torch.hypot(torch.fft.fftfreq(BOX)[:, None], torch.fft.fftfreq(BOX)) * BOX
    kept = (radius.round() > 0) & (radius.round() < rings)
    share = float(kept.double().mean())

    def squared_error(target: str) -> torch.Tensor:
        transform = torch.fft.fft2(images["denoised"] - images[target], norm="ortho")
        return (transform.abs().square() * kept).mean((-2, -1))

    expected = squared_error("twin") - NOISE**2 * share
    assert float(value) == pytest.approx(float(expected.mean()), abs=1e-5)
    # the twins' noise is independent: over the images it adds what is known of it and no more
    difference = expected - squared_error("clean")
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / N**0.5
    # with the best scale no worse, and near what the residue of the noise leaves: 0.1² / 0.8² of its power
    fitted, drawn = sums.unbiased_error(torch.full((rings,), NOISE**2), inside, best_scale=True)
    assert float(fitted) <= float(value)
    assert float(fitted) == pytest.approx((NOISE * 0.1 / 0.8) ** 2 * share, abs=4 * float(drawn.std()))


def compared(config: EvaluateConfig) -> comparison.Result:
    return compare(Sources.open(config), config)


def test_the_numbers_do_not_depend_on_the_chunks(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluateConfig(
        denoised=files["denoised"], reference=files["clean"], twin=files["twin"], raw=files["raw"]
    )
    whole = compared(config)
    monkeypatch.setattr(comparison, "READ_PX", 5 * BOX**2)
    monkeypatch.setattr(comparison, "SCORED_PX", 2 * BOX**2)
    parts = compared(config)
    for one, two in ((whole.reference, parts.reference), (whole.twin, parts.twin)):
        assert one.keys() == two.keys() == {"denoised", "raw"}
        for name in one:
            for metric, values in one[name].values.items():
                # single precision
                np.testing.assert_allclose(two[name].values[metric], values, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(two[name].rings.cross, one[name].rings.cross, rtol=1e-4, atol=1e-4)
    assert whole.noise_power is not None
    assert parts.noise_power is not None
    torch.testing.assert_close(parts.noise_power, whole.noise_power, rtol=1e-3, atol=1e-4)


def test_a_drift_of_the_twin_is_taken_back(files: Files, tmp_path: Path) -> None:
    clean = files.images["clean"]
    write_particles(tmp_path, "shifted", np.roll(clean, (2, -1), axis=(1, 2)))
    config = EvaluateConfig(
        denoised=files["denoised"], twin=tmp_path / "shifted.star", raw=files["clean"], align_twin=True
    )
    result = compared(config)
    assert result.drift_px == {f"mic{i}.mrc": (2.0, -1.0) for i in range(MICROGRAPHS)}
    # moved back, the twin is the clean image again
    np.testing.assert_allclose(result.twin["raw"].values["correlation"], 1.0, atol=1e-5)


def test_a_micrograph_is_never_divided_between_batches() -> None:
    names = [f"m{i % 3}" for i in range(20)]
    found = batches(20, (4, 4), names, 8 * 16)
    assert sorted(np.concatenate(found).tolist()) == list(range(20))
    for name in set(names):
        assert sum(any(names[row] == name for row in part) for part in found) == 1
    assert max(map(len, found)) <= 8
    assert [len(part) for part in batches(20, (4, 4), None, 8 * 16)] == [8, 8, 4]


class _Reader(HTMLParser):
    """Keeps the sources of pictures and all text; tags have to be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                (self.sources if tag == "img" else self.links).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_html(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def test_the_report_is_one_well_formed_file_with_its_pictures_inside(evaluated: Path) -> None:
    reader = read_html(evaluated / "evaluation.html")
    assert reader.links == []
    prefix = "data:image/png;base64,"
    pictures = [base64.b64decode(source.removeprefix(prefix)) for source in reader.sources]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    written = {path.name for path in evaluated.iterdir()} - {JOURNAL_NAME}
    assert written == {
        "evaluation.html", "evaluation.json", "evaluation_images.star", "logfile.pdf",
        *(f"evaluation_{name}.png" for name in (
            "gallery", "spectra_raw", "frc_clean", "spectra_clean", "histograms_clean", "frc_twin",
            "spectra_twin", "histograms_twin", "clustering",
        )),
    }  # fmt: skip
    assert len(pictures) == 9
    text = " ".join(reader.text)
    assert "cryohush evaluate <everything>" in text
    assert "reward blur" in text
    assert (evaluated / "logfile.pdf").read_bytes().startswith(b"%PDF")


def test_text_that_looks_like_html_stays_text(tmp_path: Path) -> None:
    section = Section("<script>alert(1)</script>", notes=["a & b"], header=("<b>",), rows=[('"x"',)])
    path = write_html(tmp_path / "r.html", "<h1>", "<w>", {"command": "a < b"}, [section])
    reader = read_html(path)
    assert "<script>alert(1)</script>" in reader.text
    assert "<script" not in path.read_text()


def test_each_picture_stands_in_the_report_once(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    section = Section(
        "s", pictures=[Picture("one", "first", Figure((1, 1))), Picture("two", "second", Figure((1, 1)))]
    )
    reader = read_html(write_html(tmp_path / "r.html", "h", "w", {}, [section]))
    assert len(reader.sources) == 2
    assert reader.text.count("first") == 1


def test_the_table_of_images_has_a_row_for_each(evaluated: Path, files: Files) -> None:
    read_alike(evaluated / "evaluation_images.star")
    table = starfile.read(evaluated / "evaluation_images.star")
    assert table["row"].tolist() == list(range(1, N + 1))
    expected = ((files.images["denoised"] - files.images["clean"]) ** 2).mean((1, 2))
    # written with seven digits
    np.testing.assert_allclose(table["denoised_mse_clean"], expected, rtol=1e-5)


def test_discs_of_two_sizes_fall_into_their_classes(numbers: dict[str, Any]) -> None:
    assert numbers["clustering"]["clean"] == {"accuracy": 1.0, "adjusted_rand_index": 1.0}


def test_what_is_not_finite_is_null_in_the_json(files: Files, tmp_path: Path) -> None:
    write_particles(tmp_path, "same", files.images["clean"])
    config = EvaluateConfig(denoised=tmp_path / "same.star", reference=files["clean"], threads=1)
    run_evaluate(config, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["against_clean"]["denoised"]
    assert found["psnr"]["mean"] is None  # infinite
    assert found["ssim"]["mean"] == pytest.approx(1.0)


def test_unit_range_is_the_scale_of_the_papers(files: Files) -> None:
    config = EvaluateConfig(
        denoised=files["denoised"], reference=files["clean"], data_range="unit", metrics=("psnr",)
    )
    found = compared(config).reference["denoised"].values
    assert list(found) == ["psnr"]
    stretched = [
        (stack - stack.min((1, 2), keepdims=True)) / np.ptp(stack, (1, 2), keepdims=True)
        for stack in (files.images["denoised"], files.images["clean"])
    ]
    expected = -10 * np.log10(((stretched[0] - stretched[1]) ** 2).mean((1, 2)))
    np.testing.assert_allclose(found["psnr"], expected, rtol=1e-4)


def test_a_stop_leaves_nothing_behind(files: Files, tmp_path: Path) -> None:
    config = EvaluateConfig(denoised=files["denoised"], twin=files["twin"], threads=1)
    with pytest.raises(Aborted):
        run_evaluate(config, tmp_path / "out", JobContext(should_stop=lambda: True))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_earlier_evaluation_is_replaced_only_when_asked(files: Files, tmp_path: Path) -> None:
    config = EvaluateConfig(denoised=files["denoised"], raw=files["raw"], twin=files["twin"], threads=1)
    folder = tmp_path / "report"
    run_evaluate(config, folder)
    drawn = {path.name for path in folder.glob("*.png")}
    with pytest.raises(OutputError, match=r"holds another run \(evaluation.*\).*--overwrite"):
        run_evaluate(config, folder)
    run_evaluate(config.model_copy(update={"twin": None}), folder, earlier="replace")
    assert {path.name for path in folder.glob("*.png")} < drawn


def test_what_belongs_to_somebody_else_is_never_replaced(files: Files, tmp_path: Path) -> None:
    config = EvaluateConfig(denoised=files["denoised"], raw=files["raw"], threads=1)
    (tmp_path / "logfile.pdf").write_text("of another job")
    for earlier in get_args(Earlier):
        with pytest.raises(OutputError, match=r"holds another run, or files of your own \(logfile\.pdf\)"):
            run_evaluate(config, tmp_path, earlier=earlier)
    assert (tmp_path / "logfile.pdf").read_text() == "of another job"
    assert not (tmp_path / JOURNAL_NAME).exists()


def test_a_finished_evaluation_is_not_made_again_on_resuming(files: Files, tmp_path: Path) -> None:
    config = EvaluateConfig(denoised=files["denoised"], raw=files["raw"], threads=1)
    first = run_evaluate(config, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    lines: list[str] = []
    again = run_evaluate(config, tmp_path / "out", JobContext(log=lines.append), earlier="resume")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert set(again.files) == set(first.files)
    assert any("nothing is left to do" in line for line in lines)


def run(*arguments: str | Path) -> int:
    return main(["evaluate", "--threads", "1", *map(str, arguments)])


def test_bad_input_is_one_clear_error(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = files.images["clean"]
    write_particles(tmp_path, "fewer", images[:-1])
    write_particles(tmp_path, "smaller", images[:, :16, :16].copy())
    write_particles(tmp_path, "coarser", images, pixel_size_angstrom=4.0)
    bad = images.copy()
    bad[7, 3, 3] = math.nan
    write_particles(tmp_path, "nan", bad)
    write_particles(tmp_path, "made", images)
    with mrcfile.open(tmp_path / "made.mrcs", "r+") as file:
        file.add_label(label_of_denoised("general"))
    denoised, clean = files["denoised"], files["clean"]
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (
            ("--denoised", denoised, "--reference", tmp_path / "fewer.star"),
            "found 23, and nothing",
        ),
        (("--denoised", denoised, "--reference", tmp_path / "smaller.star"), "images of 16 x 16 px, but"),
        (("--denoised", denoised, "--reference", tmp_path / "coarser.star"), "pixel size of 4 Å, but"),
        (("--denoised", denoised, "--reference", tmp_path / "nan.star"), "image 8: the image holds NaN"),
        (("--denoised", denoised, "--reference", tmp_path / "none.star"), "none.star"),
        (("--denoised", denoised, "--reference", denoised), "compared with itself"),
        (("--denoised", clean, "--reference", tmp_path / "made.star"), "were denoised"),
        (("--denoised", denoised, "--reference", clean, "--particle-diameter", "0.1"), "too few to compare"),
        (("--pairs", denoised, files["twin"], "--coarsest", "0.1"), "nothing in the images is finer than"),
        (("--denoised", denoised, "--reference", clean, "--metrics", "pnsr"), "did you mean 'psnr'?"),
        (("--denoised", denoised, "--raw", files["raw"], "--metrics", "psnr"), "give reference"),
        (("--pairs", denoised, files["twin"], "--align-twin"), "--align-twin needs twin and raw"),
        (("--pairs", denoised, files["twin"], "--mask", clean), "--mask goes with"),
        (("--pairs", denoised, files["twin"], "--baselines", "gausian"), "did you mean 'gaussian'?"),
        (("--denoised", denoised), "needs something to be compared with"),
        ((), "nothing to evaluate"),
        (("--model", "no_such"), "unknown model 'no_such'"),
        (("--set", "a=1"), "give --config"),
        (("--config", tmp_path / "none.yaml"), "none.yaml"),
    ]
    for number, (arguments, expected) in enumerate(cases):
        assert run(*arguments, "--output", tmp_path / f"out{number}") == 1, arguments
        error = capsys.readouterr().err
        assert expected in error, (arguments, error)
        assert error.count("error: ") == 1


def test_a_misspelt_key_of_the_file_is_named_with_the_nearest(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(f"denoised: {files['denoised']}\ntwins: {files['twin']}\n")
    assert run("--config", path, "--output", tmp_path / "out") == 1
    assert "unknown key 'twins'; did you mean 'twin'?" in capsys.readouterr().err


def test_without_micrographs_aligning_is_refused(files: Files, tmp_path: Path) -> None:
    config = EvaluateConfig(
        denoised=files.folder / "denoised.mrcs", twin=files.folder / "twin.mrcs",
        raw=files.folder / "raw.mrcs", align_twin=True,
    )  # fmt: skip
    with pytest.raises(CryohushError, match="rlnMicrographName"):
        run_evaluate(config, tmp_path)


@pytest.mark.parametrize("name", ["raw", "reference"])
def test_images_are_no_twins_of_themselves(files: Files, tmp_path: Path, name: str) -> None:
    """Of a copy, too, the noise is the same: raw images would correlate perfectly with their twins."""
    copy = write_particles(tmp_path, "copy", files.images["raw"])
    with pytest.raises(InputError, match=r"copy\.star: the images are those of .*raw\.star themselves"):
        compared(EvaluateConfig(**{"denoised": files["denoised"], "twin": copy, name: files["raw"]}))


@pytest.mark.parametrize("name", ["reference", "twin"])
def test_the_raw_images_are_neither_clean_nor_independent(files: Files, name: str) -> None:
    """Denoised images keep some of the noise that they were made of, and would correlate with it."""
    lines = (
        files["denoised"].read_text().replace("_rlnClassNumber #4", "_rlnImageOriginalName #4").split("\n")
    )
    made = files.folder / "made.star"
    # as `denoise` writes it: the raw image in place of the class
    made.write_text(
        "\n".join(
            f"{line[:-1]}{line.split()[0].replace('denoised', 'raw')}" if "@" in line else line
            for line in lines
        )
    )
    with pytest.raises(InputError, match=r"raw\.star: these are the raw images"):
        Sources.open(EvaluateConfig(**{"denoised": made, name: files["raw"]}))
    # where they belong
    Sources.open(
        EvaluateConfig(denoised=made, raw=files["raw"], reference=files["clean"], pair_by_order=True)
    )


@pytest.mark.parametrize("name", ["raw", "twin"])
def test_denoised_images_are_no_raw_ones(files: Files, tmp_path: Path, name: str) -> None:
    """Their figures would be those of a denoiser, and the gain over them another one's."""
    made, images = tmp_path / "made.mrcs", files.images["denoised"]
    with StackWriter(
        made, images.shape, pixel_size_angstrom=PIXEL_SIZE, label=label_of_denoised("m")
    ) as writer:
        writer.write(images)
    with pytest.raises(InputError, match=r"made\.mrcs: these images were denoised already"):
        compared(EvaluateConfig(**{"denoised": files["denoised"], "reference": files["clean"], name: made}))


def test_bare_stacks_are_compared_image_by_image(files: Files) -> None:
    config = EvaluateConfig(denoised=files.folder / "denoised.mrcs", twin=files.folder / "twin.mrcs")
    sources = Sources.open(config)
    values = compared(config).twin["denoised"].values["correlation"]
    found = comparison.score(values, sources.groups)
    images = tensors(files)
    expected = image.correlation(images["denoised"], images["twin"])
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-5)
    # single images are drawn: the error of a mean, to the 500 draws' own 3 %
    assert found.standard_error == pytest.approx(float(expected.std()) / math.sqrt(N), rel=0.15)


def placed(
    folder: Path, name: str, images: np.ndarray[Any, Any], order: list[int], original: str = ""
) -> Path:
    """A table in some order with micrograph and place of each particle, and its original image's name."""
    table = write_particles(folder, name, images)
    head, _, rows = table.read_text().rpartition("_rlnClassNumber #4\n")
    lines = rows.split("\n")[: len(images)]
    labels = "_rlnClassNumber #4\n_rlnCoordinateX #5\n_rlnCoordinateY #6\n"
    labels += "_rlnImageOriginalName #7\n" if original else ""
    for i, line in enumerate(lines):
        lines[i] = f"{line} {100 + 7 * i} {900 - 3 * i}" + (
            f" {i + 1:06d}@{original}.mrcs" if original else ""
        )
    path = folder / f"{name}_{'_'.join(map(str, order[:3]))}_{len(order)}.star"
    path.write_text(head + labels + "\n".join(lines[i] for i in order) + "\n\n")
    return path


def test_rows_in_any_order_give_the_same_figures(files: Files, tmp_path: Path) -> None:
    """RELION sorts rows and selections leave some out: every table in an order of its own."""
    rng = np.random.default_rng(3)
    kept = sorted(int(i) for i in rng.permutation(N)[: N - 4])

    def figures(name: str, *, mixed: bool) -> tuple[dict[str, Any], list[str]]:
        def table(kind: str, original: str = "") -> Path:
            order = kept
            if mixed:  # the denoised ones and the twins, the raw ones are all there
                order = [int(i) for i in rng.permutation(N if kind == "raw" else kept)]
            return placed(tmp_path, kind, files.images[kind], order, original)

        lines: list[str] = []
        config = EvaluateConfig(
            denoised=table("denoised", "raw"), twin=table("twin"), raw=table("raw"), threads=1
        )
        run_evaluate(config, tmp_path / name, JobContext(log=lines.append))
        return json.loads((tmp_path / name / "evaluation.json").read_text())["against_twin"], lines

    (expected, _), (found, lines) = figures("sorted", mixed=False), figures("mixed", mixed=True)
    for kind in ("denoised", "raw", "gain"):
        # sums over images in another order
        assert found[kind]["correlation"]["mean"] == pytest.approx(
            expected[kind]["correlation"]["mean"], rel=1e-4
        )
    assert any("paired by image names" in line for line in lines)
    assert any("paired by micrograph and coordinates" in line for line in lines)
    assert any(f"{N - 4} of {N} rows, of {N - 4} on the other side" in line for line in lines)
    rows = starfile.read(tmp_path / "mixed/evaluation_images.star")["row"]
    assert sorted(rows) == list(range(1, N - 3))


@pytest.fixture
def odd(files: Files, tmp_path: Path) -> Callable[..., Path]:
    """Writes the denoised images anew, by what is done to them."""

    def write(change: Callable[[np.ndarray], np.ndarray]) -> Path:
        images = change(files.images["denoised"].copy()).astype(np.float32)
        return write_particles(tmp_path, "odd", images)

    return write


def told(denoised: Path, files: Files, folder: Path) -> str:
    """What the log says of an evaluation against the twin."""
    said: list[str] = []
    config = EvaluateConfig(denoised=denoised, twin=files["twin"], threads=1, pair_by_order=True)
    run_evaluate(config, folder, JobContext(log=said.append))
    return "\n".join(said)


@pytest.mark.parametrize(("what", "kind"), [("reference", "clean"), ("twin", "twin"), ("raw", "raw")])
def test_copies_of_the_denoised_images_are_named(what: str, kind: str, files: Files, tmp_path: Path) -> None:
    images = files.images["clean"].copy()
    images[:3] = files.images["denoised"][:3]
    given = {"reference": files["clean"], what: write_particles(tmp_path, "copies", images)}
    said: list[str] = []
    config = EvaluateConfig(denoised=files["denoised"], threads=1, **given)
    run_evaluate(config, tmp_path / "out", JobContext(log=said.append))
    remark = f"3 {kind} images, pixel by pixel the same as the denoised: "
    assert [line.startswith(f"warning: {remark}") for line in said].count(True) == 1
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert any(line.startswith(remark) for line in record["warnings"])
    assert remark in (tmp_path / "out/evaluation.html").read_text()


def test_images_without_contrast_are_named(odd: Callable[..., Path], files: Files, tmp_path: Path) -> None:
    def one_empty(images: np.ndarray) -> np.ndarray:
        images[3] = 7.0
        return images

    text = told(odd(one_empty), files, tmp_path / "one")
    assert "warning: 1 denoised image without any contrast" in text
    assert "1 denoised image without any contrast" in (tmp_path / "one/evaluation.html").read_text()
    assert f"{N} denoised images without any contrast" in told(odd(np.zeros_like), files, tmp_path / "all")


def test_images_of_the_other_contrast_are_told_from_lost_signal(
    odd: Callable[..., Path], files: Files, tmp_path: Path
) -> None:
    assert "they show the opposite" in told(odd(np.negative), files, tmp_path / "found")
    assert "opposite" not in told(odd(np.positive), files, tmp_path / "right")


@pytest.mark.parametrize("factor", [1e20, 1e-20])
def test_grey_values_whose_squares_leave_single_precision_are_refused(
    odd: Callable[..., Path], files: Files, tmp_path: Path, factor: float
) -> None:
    """Their correlation came out as 0, whatever they showed."""
    with pytest.raises(ImageError, match=r"cannot be told in single precision \(row 1 of"):
        told(odd(lambda images: images * factor), files, tmp_path / "found")
