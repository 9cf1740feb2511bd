"""What a stack says about its images: closer to the truth than one image alone, and the same in any order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from particle_files import write_stack
from simulated_stacks import SimulatedStack, StackRanges, simulate_stack

from cryohush.core.context.contexts import StackContexts, find_contexts, load_contexts
from cryohush.core.context.stack_context import FEWEST_IMAGES, StackContext, circle, fit_context
from cryohush.core.errors import InputError
from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.filters import radial_filter, wiener_gain
from cryohush.core.imaging.normalise import default_radius_px
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.rings import ring_mean
from cryohush.core.io.particles import ParticleSet
from cryohush.core.simulation.image_formation import ProjectionBank

BOX, PIXEL_SIZE = 64, 3.0
QUIET = StackRanges(
    snr=(0.1, 0.1),
    envelope_b_factor=0.0,
    ice_share=0.0,
    background_share=0.0,
    noise_tilt=0.0,
    crowded_probability=0.0,
    empty_share=0.0,
    other_share=0.0,
    no_ctf_probability=0.0,
    unknown_ctf_probability=0.0,
    defocus_error_angstrom=0.0,
)


def table() -> CtfParameters:
    defocus = torch.linspace(8000.0, 20000.0, 50)
    same = torch.ones(50)
    return CtfParameters(
        defocus + 200, defocus - 200, 30 * same, 300 * same, 2.7 * same, 0.1 * same, 0 * same
    )


def bank(seed: int = 0) -> ProjectionBank:
    """Views of a few blobs within a third of the box."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX).float() - BOX // 2
    volume = torch.zeros(BOX, BOX, BOX)
    for _ in range(30):
        centre = (torch.rand(3, generator=generator) - 0.5) * 0.45 * BOX
        z, y, x = (torch.exp(-((axis - c) ** 2) / (2 * 1.5**2)) for c in centre)
        volume += z[:, None, None] * y[:, None] * x
    images = Projector(volume)(random_rotations(256, generator))
    images = images / images.std(dim=(1, 2), keepdim=True)
    n = len(images)
    return ProjectionBank(
        images.half(), torch.full((n,), PIXEL_SIZE), torch.full((n,), 40.0), torch.zeros(n, dtype=torch.int64)
    )


def stack(n: int, ranges: StackRanges = QUIET, seed: int = 1) -> SimulatedStack:
    generator = torch.Generator().manual_seed(seed)
    return simulate_stack([bank()], [table()], ranges, generator, BOX, n)


def fitted(simulated: SimulatedStack) -> StackContext:
    return fit_context(
        simulated.noisy,
        simulated.optics,
        pixel_size_angstrom=PIXEL_SIZE,
        radius_px=default_radius_px((BOX, BOX)),
    )


def error(images: torch.Tensor, clean: torch.Tensor) -> float:
    return float((images - clean).square().mean() / clean.var((1, 2)).mean())


def test_both_images_are_closer_to_the_truth_than_the_best_radial_filter() -> None:
    simulated = stack(600)
    channels = fitted(simulated).channels(simulated.noisy, simulated.optics)
    shape = (BOX, BOX)
    total = ring_mean(torch.fft.rfft2(simulated.noisy, norm="ortho").abs().square().mean(0), shape)
    noise = simulated.noisy - simulated.clean
    # told the noise's true power, which no user knows
    power = ring_mean(torch.fft.rfft2(noise, norm="ortho").abs().square().mean(0), shape)
    radial = error(radial_filter(simulated.noisy, wiener_gain(power, total)), simulated.clean)
    assert error(channels[:, 1], simulated.clean) < radial
    assert error(channels[:, 0], simulated.clean) < 0.8 * radial


def test_the_noise_is_that_of_the_background_and_ice_counts_as_signal() -> None:
    quiet = fitted(stack(300))
    # the normalised background has variance 1, all of it noise that is white
    assert quiet.noise_variance == pytest.approx(1.0, rel=0.03)
    icy = fitted(stack(300, replace(QUIET, ice_share=0.5)))
    assert icy.noise_variance < 0.95
    assert quiet.unevenness < 0.1
    assert icy.unevenness == 1.0
    channels = quiet.channels(
        torch.zeros(1, BOX, BOX), None if quiet.group_optics is None else quiet.group_optics[:1]
    )
    assert channels[:, 3].unique().tolist() == pytest.approx([quiet.unevenness])
    assert float(icy.signal_power[3:8].mean()) > float(quiet.signal_power[3:8].mean())


def test_a_larger_box_of_the_same_pixels_costs_no_accuracy_in_the_band() -> None:
    """An image of 128 px is judged on the grid of 64 px and shown on its own."""
    small = stack(200)
    large = torch.zeros(200, 2 * BOX, 2 * BOX)
    spectrum = torch.fft.rfft2(small.noisy)
    grown = torch.zeros(200, 2 * BOX, BOX + 1, dtype=spectrum.dtype)
    half = BOX // 2
    grown[:, :half, :half], grown[:, 1 - half :, :half] = (
        spectrum[:, :half, :half],
        spectrum[:, 1 - half :, :half],
    )
    large = torch.fft.irfft2(grown, s=(2 * BOX, 2 * BOX)) * 4
    radius = default_radius_px((BOX, BOX))
    context = fit_context(large, small.optics, pixel_size_angstrom=PIXEL_SIZE / 2, radius_px=2 * radius)
    ours = fitted(small)
    assert context.working_pixel_size_angstrom == PIXEL_SIZE
    torch.testing.assert_close(
        context.channels(large, small.optics)[:, :2, ::2, ::2],
        ours.channels(small.noisy, small.optics)[:, :2],
        atol=0.03,  # the sharp Nyquist column is left out on one side
        rtol=0,
    )


def test_an_image_gets_the_same_context_in_any_company() -> None:
    simulated = stack(200)
    assert simulated.optics is not None
    context = fitted(simulated)
    together = context.channels(simulated.noisy, simulated.optics)
    chosen = torch.tensor([7, 150, 3])
    apart = context.channels(simulated.noisy[chosen], simulated.optics[chosen])
    torch.testing.assert_close(apart, together[chosen], atol=1e-5, rtol=0)  # rounding of products in batches


def test_pure_noise_explains_nothing() -> None:
    noise = torch.randn(400, BOX, BOX, generator=torch.Generator().manual_seed(3))
    context = fit_context(noise, None, pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0)
    channels = context.channels(noise)
    # a few per cent of noise stay in the lowest rings, as a finite sample allows
    assert float(channels[:, 0].var()) < 0.01
    assert float(channels[:, 2].max()) < 0.5


def test_the_third_channel_is_a_share_within_the_circle() -> None:
    simulated = stack(200)
    share = fitted(simulated).channels(simulated.noisy, simulated.optics)[:, 2]
    assert float(share.min()) >= 0
    assert float(share.max()) < 1
    outside = circle(BOX, default_radius_px((BOX, BOX))) == 0
    assert float(share[:, outside].abs().max()) == 0


def test_too_few_images_are_refused() -> None:
    noise = torch.randn(FEWEST_IMAGES - 1, BOX, BOX)
    with pytest.raises(ValueError, match=f"{FEWEST_IMAGES} square images"):
        fit_context(noise, None, pixel_size_angstrom=1.0, radius_px=24.0)


def write_particles(folder: Path, simulated: SimulatedStack, half_sets: bool = True) -> ParticleSet:
    """Two stacks and their table, with CTFs and half sets."""
    n = len(simulated.noisy)
    first = n // 3
    write_stack(folder / "a.mrcs", simulated.noisy[:first].numpy())
    write_stack(folder / "b.mrcs", simulated.noisy[first:].numpy())
    optics = simulated.optics
    assert optics is not None
    labels = ["rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnOpticsGroup"]
    labels += ["rlnRandomSubset"] * half_sets
    lines = ["data_optics", "", "loop_"]
    columns = ["rlnOpticsGroup", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
    columns += ["rlnImagePixelSize", "rlnImageSize"]
    lines += [f"_{name} #{i + 1}" for i, name in enumerate(columns)]
    lines += [f"1 300 2.7 0.1 {PIXEL_SIZE} {BOX}", "", "data_particles", "", "loop_"]
    lines += [f"_{name} #{i + 1}" for i, name in enumerate(labels)]
    for row in range(n):
        name = f"{row + 1:06d}@a.mrcs" if row < first else f"{row - first + 1:06d}@b.mrcs"
        values = [
            name,
            *(f"{float(v[row]):.2f}" for v in (optics.defocus_u_angstrom, optics.defocus_v_angstrom)),
        ]
        values += [f"{float(optics.angle_degrees[row]):.2f}", "1"] + [str(1 + row % 2)] * half_sets
        lines.append(" ".join(values))
    path = folder / "particles.star"
    path.write_text("\n".join(lines) + "\n")
    return ParticleSet.read(path, root=folder)


def assert_saved_as_it_is(contexts: StackContexts, simulated: SimulatedStack, folder: Path) -> None:
    """A context that was saved and loaded is saved as the same file, and shows the same channels."""
    sha256 = contexts.save(folder / "context.safetensors")
    loaded = load_contexts(folder / "context.safetensors")
    assert loaded.save(folder / "copy.safetensors") == sha256
    places = [(folder / "a.mrcs", np.arange(20, dtype=np.int32))]
    torch.testing.assert_close(
        loaded.channels(simulated.noisy[:20], places),
        contexts.channels(simulated.noisy[:20], places),
        atol=0,
        rtol=0,
    )


def test_half_sets_do_not_see_each_other(tmp_path: Path) -> None:
    simulated = stack(400)
    particles = write_particles(tmp_path, simulated)
    before = find_contexts(particles, dark_stacks=frozenset())
    assert len(before.contexts) == 2
    # the second half set becomes something else
    other = simulated.noisy.clone()
    other[1::2] = torch.randn(200, BOX, BOX, generator=torch.Generator().manual_seed(9))
    changed = SimulatedStack(other, simulated.clean, simulated.optics, PIXEL_SIZE)
    (tmp_path / "other").mkdir()
    after = find_contexts(write_particles(tmp_path / "other", changed), dark_stacks=frozenset())
    index = np.arange(0, 100, 2, dtype=np.int32)
    images = simulated.noisy[torch.from_numpy(index).long()]
    torch.testing.assert_close(
        before.channels(images, [(tmp_path / "a.mrcs", index)]),
        after.channels(images, [(tmp_path / "other" / "a.mrcs", index)]),
        atol=0,
        rtol=0,
    )


def test_a_saved_context_is_the_same(tmp_path: Path) -> None:
    simulated = stack(300)
    particles = write_particles(tmp_path, simulated, half_sets=False)
    contexts = find_contexts(particles, dark_stacks=frozenset())
    sha256 = contexts.save(tmp_path / "context.safetensors")
    loaded = load_contexts(tmp_path / "context.safetensors")
    assert loaded.save(tmp_path / "copy.safetensors") == sha256
    assert loaded.notes == contexts.notes
    places = [
        (tmp_path / "a.mrcs", np.arange(40, dtype=np.int32)),
        (tmp_path / "b.mrcs", np.arange(5, dtype=np.int32)),
    ]
    images = torch.cat([simulated.noisy[:40], simulated.noisy[100:105]])
    torch.testing.assert_close(
        loaded.channels(images, places), contexts.channels(images, places), atol=0, rtol=0
    )
    again = find_contexts(particles, dark_stacks=frozenset())
    assert again.save(tmp_path / "again.safetensors") == sha256


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "context.safetensors"
    path.write_bytes(b"\x08" + bytes(30))
    with pytest.raises(InputError, match="context of an earlier run cannot be read"):
        load_contexts(path)


def test_small_and_mixed_groups_have_none(tmp_path: Path) -> None:
    simulated = stack(60)
    contexts = find_contexts(write_particles(tmp_path, simulated, half_sets=False), dark_stacks=frozenset())
    assert contexts.contexts == ()
    assert "60 images, at least 100 are needed" in contexts.notes["optics group 1"]
    channels = contexts.channels(simulated.noisy[:3], [(tmp_path / "a.mrcs", np.arange(3, dtype=np.int32))])
    assert not bool(channels.any())
