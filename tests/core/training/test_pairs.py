from pathlib import Path

import numpy as np
import pytest
import torch

from cryohush.core.config.training import PairsConfig, TrainingConfig
from cryohush.core.errors import ConfigurationError, ImageError, InputError
from cryohush.core.io.mrc import StackWriter
from cryohush.core.io.mrc_header import label_of_denoised
from cryohush.core.job_context import JobContext
from cryohush.core.models.weights import load_model
from cryohush.core.training.pairs import PairedParticles, recorrupted
from cryohush.core.training.run import train
from cryohush.core.training.stored import StoredImages

N, BOX = 40, 32


def write_stack(path: Path, images: np.ndarray) -> Path:
    with StackWriter(path, images.shape, pixel_size_angstrom=2.0, label="test") as writer:
        writer.write(images)
    return path


def write_set(folder: Path, name: str, images: np.ndarray, *, half_sets: bool = True) -> Path:
    write_stack(folder / f"{name}.mrcs", images)
    labels = ["rlnImageName", "rlnMicrographName", *(["rlnRandomSubset"] if half_sets else [])]
    lines = ["data_particles", "", "loop_", *(f"_{label} #{i}" for i, label in enumerate(labels, 1))]
    for i in range(len(images)):
        row = [f"{i + 1:06d}@{name}.mrcs", f"mic{i // 8}.mrc", *([str(1 + i % 2)] if half_sets else [])]
        lines.append(" ".join(row))
    path = folder / f"{name}.star"
    path.write_text("\n".join([*lines, ""]))
    return path


@pytest.fixture
def images() -> np.ndarray:
    """Each image has its own number as the mean of its centre, so that rows can be told apart."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(N, BOX, BOX)).astype(np.float32)
    images[:, 12:20, 12:20] += np.arange(N, dtype=np.float32)[:, None, None] * 3
    return images


def test_pairs_stay_together_and_share_their_turn(tmp_path, images):
    noisy, clean = write_set(tmp_path, "noisy", images), write_set(tmp_path, "clean", 2 * images)
    data = PairedParticles(PairsConfig(noisy=noisy, target=clean), held_out=False, seed=3)
    for number in range(4):
        x, y, snr = data.batch(number, 16)
        assert x.shape == y.shape == (16, 1, BOX, BOX)
        assert snr.isnan().all()
        # the target keeps its scale beside the noisy image: twice as large, and shifted by the mean taken off
        spread = (y - 2 * x).std(dim=(1, 2, 3))
        assert float(spread.max()) < 1e-3


@pytest.mark.parametrize("mask", ["circle", "strip", "edge"])
def test_areas_without_noise_are_filled_before_a_model_learns_from_them(tmp_path, mask):
    """A model would learn the mask; masked and whole images have the same background."""
    images = np.random.default_rng(1).normal(size=(8, 64, 64)).astype(np.float32)
    spoilt = images.copy()
    y, x = np.mgrid[:64, :64] - 32
    if mask == "circle":
        spoilt[:, np.hypot(y, x) > 26] = 0.0
    elif mask == "strip":
        spoilt[:, :12] = 0.0
    else:
        spoilt[:, :, 50:] = spoilt[:, :, 49:50]
    rows = np.arange(8)
    filled, _, sd = StoredImages(write_stack(tmp_path / "spoilt.mrcs", spoilt)).read_normalised(rows)
    # of some hundred pixels outside the circle
    assert float((sd - 1).abs().max()) < 0.2
    for border in (filled[:, :6], filled[:, :, 58:]):
        assert 0.8 < float(border.std()) < 1.25
        assert float((border.diff(dim=2) == 0).float().mean()) < 0.01
    assert float(filled.abs().max()) < 7
    whole, _, _ = StoredImages(write_stack(tmp_path / "whole.mrcs", images)).read_normalised(rows)
    np.testing.assert_allclose(filled[:, 24:40, 24:40], whole[:, 24:40, 24:40], atol=1.0, rtol=0.2)


@pytest.mark.parametrize("is_copy", [False, True])
@pytest.mark.parametrize("is_clean", [False, True])
def test_images_are_no_target_of_their_own(tmp_path, images, is_copy, is_clean):
    """A model would learn to change nothing, and the loss would be perfect."""
    noisy = write_set(tmp_path, "noisy", images)
    target = write_set(tmp_path, "copy", images) if is_copy else noisy
    with pytest.raises(InputError, match=r"the images are those of .*noisy\.star themselves"):
        PairedParticles(
            PairsConfig(noisy=noisy, target=target, target_is_clean=is_clean), held_out=False, seed=3
        )


def test_denoised_images_are_nothing_to_learn_noise_from(tmp_path, images):
    made = tmp_path / "made.mrcs"
    with StackWriter(made, images.shape, pixel_size_angstrom=2.0, label=label_of_denoised("m")) as writer:
        writer.write(images)
    noisy = write_set(tmp_path, "noisy", images)
    for given in (
        {"noisy": made},
        {"noisy": made, "target": noisy},
        {"noisy": noisy, "target": made, "target_is_clean": False},
    ):
        with pytest.raises(InputError, match=r"made\.mrcs: these images were denoised already"):
            PairedParticles(PairsConfig(**given), held_out=False, seed=3)
    # as clean images they may serve: a smaller network can learn from them
    with StackWriter(made, images.shape, pixel_size_angstrom=2.0, label=label_of_denoised("m")) as writer:
        writer.write(0.5 * images)
    PairedParticles(PairsConfig(noisy=noisy, target=made), held_out=False, seed=3)


def places_of_the_particles(images):
    """Centroids `(n, 2)` of what is brighter than any noise."""
    bright = (images[:, 0] > 15).float()
    grid = torch.arange(BOX, dtype=torch.float32) - (BOX - 1) / 2
    mass = bright.sum(dim=(1, 2))
    return torch.stack([(bright * grid[:, None]).sum((1, 2)) / mass, (bright * grid).sum((1, 2)) / mass], 1)


def test_shifted_pairs_stay_together_and_are_judged_unshifted(tmp_path, images):
    images[:, 12:20, 12:20] += 40
    noisy, clean = write_set(tmp_path, "noisy", images), write_set(tmp_path, "clean", 2 * images)
    shifted = PairsConfig(noisy=noisy, target=clean, shift_share=0.25)
    x, y, _ = PairedParticles(shifted, held_out=False, seed=3).batch(0, 64)
    assert float((y - 2 * x).std(dim=(1, 2, 3)).max()) < 1e-3
    places = places_of_the_particles(x)
    assert float(places.abs().max()) == 8  # a quarter of 32 px
    # uniform from -8 to 8: sd 4.9, of 64 draws known to 9 %
    assert torch.allclose(places.std(dim=0), torch.tensor(4.9), rtol=0.3)
    plain = PairsConfig(noisy=noisy, target=clean)
    for one, other in zip(
        *(PairedParticles(config, held_out=True, seed=3).batch(0, 8)[:2] for config in (shifted, plain)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_contrast_changes_the_signal_and_not_the_noise(tmp_path, images):
    clean = np.zeros_like(images)
    clean[:, 12:20, 12:20] = np.arange(N)[:, None, None]
    noisy, clean = write_set(tmp_path, "noisy", images), write_set(tmp_path, "clean", clean)
    draws = []
    for contrast in ((1.0, 1.0), (2.0, 2.0)):
        config = PairsConfig(noisy=noisy, target=clean, contrast=contrast)
        x, y, _ = PairedParticles(config, held_out=False, seed=3).batch(0, 16)
        # batches are turned differently: grey values by rank
        draws.append([image.flatten(1).sort().values for image in (x - y, y)])
    torch.testing.assert_close(draws[1][0], draws[0][0])
    torch.testing.assert_close(draws[1][1], 2 * draws[0][1])


@pytest.mark.parametrize("contrast", [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_contrast_must_be_a_range_of_factors(tmp_path, contrast):
    with pytest.raises(ValueError, match="two positive factors, the smaller first"):
        PairsConfig(noisy=tmp_path, target=tmp_path, contrast=contrast)


@pytest.mark.parametrize("target", [{"target": None}, {"target": "twin.star", "target_is_clean": False}])
def test_contrast_needs_a_clean_target(tmp_path, target):
    with pytest.raises(ValueError, match="only where the target is clean"):
        PairsConfig(noisy=tmp_path, contrast=(0.8, 1.2), **target)


def test_noisy_targets_are_normalised_by_themselves(tmp_path, images):
    noisy, twin = write_set(tmp_path, "noisy", images), write_set(tmp_path, "twin", 5 * images + 7)
    config = PairsConfig(noisy=noisy, target=twin, target_is_clean=False)
    x, y, _ = PairedParticles(config, held_out=False, seed=3).batch(0, 16)
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def test_validation_keeps_whole_micrographs_back(tmp_path, images):
    path, target = write_set(tmp_path, "noisy", images), write_set(tmp_path, "clean", 2 * images)
    config = PairsConfig(noisy=path, target=target, validation_share=0.2)
    training = PairedParticles(config, held_out=False, seed=3).rows
    validation = PairedParticles(config, held_out=True, seed=3).rows
    assert len(validation) == 8  # one of five micrographs of eight particles
    assert not set(training // 8) & set(validation // 8)
    assert sorted([*training, *validation]) == list(range(N))


def test_a_micrograph_is_left_to_train_on_however_large_the_share(tmp_path, images):
    path, target = write_set(tmp_path, "noisy", images), write_set(tmp_path, "clean", 2 * images)
    config = PairsConfig(noisy=path, target=target, validation_share=0.99)
    sizes = [len(PairedParticles(config, held_out=held_out, seed=3).rows) for held_out in (False, True)]
    assert sizes == [8, 32]


def test_half_set_alone_is_used(tmp_path, images):
    path, target = write_set(tmp_path, "noisy", images), write_set(tmp_path, "clean", 2 * images)
    data = PairedParticles(PairsConfig(noisy=path, target=target, half_set=2), held_out=False, seed=3)
    assert set(data.rows % 2) == {1}


def test_half_set_without_its_column_is_refused(tmp_path, images):
    path = write_set(tmp_path, "noisy", images, half_sets=False)
    with pytest.raises(ConfigurationError, match="no column rlnRandomSubset"):
        PairedParticles(PairsConfig(noisy=path, target=path, half_set=1), held_out=False, seed=3)


def test_sets_that_do_not_match_are_refused(tmp_path, images):
    noisy = write_set(tmp_path, "noisy", images)
    fewer = write_set(tmp_path, "fewer", images[:-1])
    with pytest.raises(InputError, match=rf"fewer\.star: expected the {N} particles .* found {N - 1}, and"):
        PairedParticles(PairsConfig(noisy=noisy, target=fewer), held_out=False, seed=3)
    smaller = write_set(tmp_path, "smaller", images[:, :24, :24])
    with pytest.raises(InputError, match=r"expected images of 32 x 32 px as in .* found 24 x 24"):
        PairedParticles(PairsConfig(noisy=noisy, target=smaller), held_out=False, seed=3)


def test_one_micrograph_cannot_be_split(tmp_path, images):
    path = write_set(tmp_path, "noisy", images[:8])
    with pytest.raises(InputError, match="no particle is left for training"):
        PairedParticles(PairsConfig(noisy=path, target=path), held_out=False, seed=3)


def test_noise2noise_approaches_the_clean_image_that_it_never_saw(tiny, tmp_path):
    """Two noisy versions of smooth blobs: the error to the clean images falls below that of the input."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    centre = rng.uniform(-4, 4, size=(128, 2))
    clean = 3 * np.exp(-((y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2) / 30)
    stacks = [(clean + rng.normal(size=clean.shape)).astype(np.float32) for _ in range(2)]
    paths = [write_stack(tmp_path / f"{name}.mrcs", stack) for name, stack in zip("ab", stacks, strict=True)]
    del tiny["data"]
    pairs = {"noisy": paths[0], "target": paths[1], "target_is_clean": False}
    options = {**tiny["optimisation"], "steps": 150, "batch_size": 16, "learning_rate": 3e-3}
    config = TrainingConfig.model_validate(
        {**tiny, "pairs": pairs, "optimisation": options, "validate_every": 50}
    )
    network = load_model(train(config, tmp_path / "run")).module
    fresh = (clean + rng.normal(size=clean.shape)).astype(np.float32)
    with torch.inference_mode():
        estimate = network(torch.from_numpy(fresh)[:, None])[:, 0].numpy()
    # the background's own mean and sd were normalised to 0 and 1, which they were already
    assert ((estimate - clean) ** 2).mean() < 0.25


def test_recorrupted_images_share_the_signal_and_not_the_noise():
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    clean = 2 * torch.cos(2 * torch.pi * (3 * y + 2 * x) / 64).expand(60, 64, 64)
    noisy = clean + 1.5 * torch.randn(60, 64, 64, generator=generator)
    first, second = recorrupted(noisy, 0.5, generator)
    # sigma² - sigma² = 0: products have a spread of 1.5² sqrt(1 + a²) sqrt(1 + 1 / a²) = 5.6, their mean over
    # 60 x 4096 of 0.011, and the power of the noise is measured to some 0.5 %: 0.011 again
    assert float(((first - clean) * (second - clean)).mean()) == pytest.approx(0, abs=0.06)
    assert float((first - clean).var()) == pytest.approx(1.5**2 * (1 + 0.5**2), rel=0.03)
    assert float((second - clean).var()) == pytest.approx(1.5**2 * (1 + 1 / 0.5**2), rel=0.03)


def test_single_images_are_enough(tmp_path, images):
    config = PairsConfig(noisy=write_set(tmp_path, "noisy", images))
    data = PairedParticles(config, held_out=False, seed=3)
    x, y, snr = data.batch(0, 16)
    assert x.shape == y.shape == (16, 1, BOX, BOX)
    assert snr.isnan().all()
    again = data.batch(0, 16)
    assert x.equal(again[0])
    assert y.equal(again[1])
    assert not x.equal(data.batch(1, 16)[0])


def write_placed(folder: Path, name: str, images: np.ndarray, order: list[int]) -> Path:
    """A table in some order, with micrograph and place of each particle; particle i is image i + 1."""
    write_stack(folder / f"{name}.mrcs", images)
    labels = ("rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")
    lines = ["data_particles", "", "loop_", *(f"_{label} #{i}" for i, label in enumerate(labels, 1))]
    lines += [f"{i + 1:06d}@{name}.mrcs mic{i // 8}.mrc {100 + 30 * i} {3000 - 20 * i}" for i in order]
    path = folder / f"{name}.star"
    path.write_text("\n".join([*lines, ""]))
    return path


@pytest.mark.parametrize("clean", [True, False])
def test_targets_in_another_order_are_found_by_their_places(tmp_path, images, clean):
    order = [int(i) for i in np.random.default_rng(5).permutation(N)]
    lines: list[str] = []
    noisy, target = (
        write_placed(tmp_path, "noisy", images, list(range(N))),
        images + 7 if clean else 5 * images + 7,
    )
    paths = [
        write_placed(tmp_path, name, target, rows) for name, rows in (("b", order), ("c", order[::-1][:30]))
    ]
    for path in paths:
        config = PairsConfig(noisy=noisy, target=path, target_is_clean=clean)
        context = JobContext(log=lines.append)
        data = PairedParticles(config, held_out=False, seed=3, context=context)
        x, y, _ = data.batch(0, 16)
        # alike but for an offset where the target is clean and keeps its own background
        assert float((y - x).std(dim=(1, 2, 3)).max()) < 1e-3
    assert "b.star: paired by micrograph and coordinates" in lines[0]
    assert "30 of 30 rows, of 40 on the other side" in lines[1]
    assert set(data.rows) <= set(order[::-1][:30])


def test_targets_of_other_particles_are_refused(tmp_path, images):
    noisy = write_placed(tmp_path, "noisy", images, list(range(N)))
    other = write_placed(tmp_path, "other", images, list(range(N)))
    other.write_text(other.read_text().replace("mic", "session2_mic").replace(" 2980\n", " 1980\n"))
    with pytest.raises(InputError, match=r"other\.star: its rows are not those of .* row 2 "):
        PairedParticles(PairsConfig(noisy=noisy, target=other), held_out=False, seed=3)


def test_images_that_cannot_be_learnt_from_are_found_before_the_training(tmp_path, images):
    """Hours into it the first would end the training."""
    images[3, 5, 5], images[9] = np.nan, 0.0
    noisy = tmp_path / "noisy.mrcs"
    with StackWriter(noisy, images.shape, pixel_size_angstrom=2.0, label="test") as writer:
        writer.write(images, unchecked=range(N))
    said: list[str] = []
    context = JobContext(log=said.append)
    config = PairsConfig(noisy=noisy)
    parts = [
        PairedParticles(config, held_out=held_out, seed=3, context=context) for held_out in (False, True)
    ]
    rows = np.concatenate([part.rows for part in parts])
    assert sorted(rows) == [row for row in range(N) if row not in (3, 9)]
    assert any("left out. The first:" in line and "image 4:" in line for line in said)
    for number in range(8):
        assert torch.isfinite(parts[0].batch(number, 16)[0]).all()
    images[:] = np.nan
    with StackWriter(noisy, images.shape, pixel_size_angstrom=2.0, label="test") as writer:
        writer.write(images, unchecked=range(N))
    with pytest.raises(ImageError, match="NaN or infinite"):
        PairedParticles(config, held_out=False, seed=3)


@pytest.mark.parametrize("is_clean", [False, True])
def test_targets_of_the_other_contrast_are_refused(tmp_path, images, is_clean):
    """A model would learn to show the opposite, with a loss that falls."""
    rng = np.random.default_rng(2)
    other = images + rng.normal(size=images.shape).astype(np.float32)
    noisy = write_set(tmp_path, "noisy", images)
    target = write_set(tmp_path, "dark", -other)
    config = PairsConfig(noisy=noisy, target=target, target_is_clean=is_clean)
    with pytest.raises(InputError, match=r"dark\.star: the images show the opposite"):
        PairedParticles(config, held_out=False, seed=3)
    light = write_set(tmp_path, "light", other)
    PairedParticles(config.model_copy(update={"target": light}), held_out=False, seed=3)
