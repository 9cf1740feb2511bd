import math

import numpy as np
import pytest
import torch

from cryohush.core.errors import ConfigurationError, InputError
from cryohush.core.imaging.ctf import (
    CtfParameters,
    b_factor_envelope,
    box_needed_px,
    check_ctf_sampling,
    ctf,
    read_ctf_table,
)


def parameters(**changes: float) -> CtfParameters:
    values = {
        "defocus_u_angstrom": 18000.0,
        "defocus_v_angstrom": 15000.0,
        "angle_degrees": 30.0,
        "voltage_kv": 300.0,
        "cs_mm": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift_degrees": 0.0,
    }
    return CtfParameters(**{k: torch.tensor([v]) for k, v in {**values, **changes}.items()})


def formula(p: CtfParameters, pixel_size: float, box: int) -> np.ndarray:
    """The textbook CTF in double precision, written independently of torch-ctf."""
    u, v, angle, kv, cs, contrast, shift = (getattr(p, name).item() for name in p.__dataclass_fields__)
    volts = kv * 1e3
    wavelength = 12.2643247 / math.sqrt(volts * (1 + volts * 0.978466e-6))  # Å, relativistic
    ky, kx = np.meshgrid(np.fft.fftfreq(box, pixel_size), np.fft.rfftfreq(box, pixel_size), indexing="ij")
    k2 = kx**2 + ky**2
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (np.arctan2(ky, kx) - math.radians(angle)))
    chi = math.pi * wavelength * defocus * k2 - math.pi / 2 * cs * 1e7 * wavelength**3 * k2**2
    return np.sin(chi + math.radians(shift) + math.atan(contrast / math.sqrt(1 - contrast**2)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"defocus_u_angstrom": 14000.0}, {"phase_shift_degrees": 90.0}, {"voltage_kv": 200.0, "cs_mm": 2.0}],
    ids=["u above v", "u below v", "phase plate", "200 kV"],
)
def test_ctf_agrees_with_the_textbook_formula(changes):
    p = parameters(**changes)
    got = ctf(p, torch.tensor([1.5]), 96)[0].numpy()
    # phases reach 100 rad, where float32 resolves 1e-5, and the wavelength's constants differ by 1e-6
    np.testing.assert_allclose(got, formula(p, 1.5, 96), atol=2e-3)


def test_underfocus_shows_white_protein_at_low_frequency():
    values = ctf(parameters(), torch.tensor([1.5]), 96)[0]
    assert values[0, 0].item() == pytest.approx(0.1, abs=1e-3)
    assert (values[0, :4] > 0).all()


def test_each_image_gets_its_own_parameters_and_pixel_size():
    one, two = parameters(), parameters(defocus_u_angstrom=9000.0, angle_degrees=77.0)
    both = CtfParameters(*(torch.cat([getattr(one, n), getattr(two, n)]) for n in one.__dataclass_fields__))
    together = ctf(both, torch.tensor([1.5, 3.0]), 64)
    assert torch.equal(together[0], ctf(one, torch.tensor([1.5]), 64)[0])
    assert torch.equal(together[1], ctf(two, torch.tensor([3.0]), 64)[0])


def test_table_of_the_wrong_shape_is_refused(tmp_path):
    path = tmp_path / "ctf.npy"
    np.save(path, np.zeros((5, 3), dtype=np.float32))
    with pytest.raises(InputError, match=r"ctf\.npy: expected rows of nine columns"):
        read_ctf_table(path)


def test_table_columns_come_in_degrees(tmp_path):
    path = tmp_path / "ctf.npy"
    np.save(path, np.array([[128, 1.5, 1e4, 9e3, 20, 300, 2.7, 0.1, math.pi / 2]], dtype=np.float32))
    table = read_ctf_table(path)
    assert table.angle_degrees.item() == 20
    assert table.phase_shift_degrees.item() == pytest.approx(90, abs=1e-4)


def test_rectangle_samples_the_same_function_as_a_square():
    # a frequency of 64 px is every third of 192 px, one of 96 px every second
    square = ctf(parameters(), torch.tensor([1.5]), 192)
    rectangle = ctf(parameters(), torch.tensor([1.5]), (64, 96))
    expected = square[:, ::3, ::2].clone()
    # the Nyquist frequencies of the smaller grid have both signs on the larger one
    torch.testing.assert_close(rectangle[:, :32, :48], expected[:, :32, :48], rtol=0, atol=1e-4)
    torch.testing.assert_close(rectangle[:, 33:, :48], expected[:, 33:, :48], rtol=0, atol=1e-4)


def test_b_factor_leaves_exp_of_minus_b_over_4_d_squared():
    envelope = b_factor_envelope(torch.tensor([100.0]), torch.tensor([2.0]), 32)
    assert envelope[0, 0, 0] == 1
    assert envelope[0, 0, 16].item() == pytest.approx(math.exp(-100 / (4 * 4.0**2)), rel=1e-5)  # 4 Å


def test_box_needed_is_where_the_ctf_begins_to_alias():
    # without Cs the last oscillation before Nyquist is the fastest: its period must span two samples
    p = parameters(defocus_u_angstrom=20000.0, defocus_v_angstrom=20000.0, cs_mm=0.0, amplitude_contrast=0.0)
    box = int(box_needed_px(p, torch.tensor([1.0]))[0])
    wavelength = 12.2643247 / math.sqrt(3e5 * (1 + 3e5 * 0.978466e-6))

    def phase_step(n: int) -> float:
        k = np.arange(n // 2 + 1) / n
        return float(np.diff(math.pi * wavelength * 20000.0 * k**2).max())

    assert phase_step(box) <= math.pi
    assert phase_step(box - 4) > math.pi
    check_ctf_sampling(p, torch.tensor([1.0]), box)
    with pytest.raises(ConfigurationError, match=rf"image 1 .*needs a box of {box} px"):
        check_ctf_sampling(p, torch.tensor([1.0]), box - 2)
