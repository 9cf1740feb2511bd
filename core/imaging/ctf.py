"""The contrast transfer function, with RELION's parameters and sign, and how much of it a box can hold.

References
----------
.. [1] Rohou & Grigorieff (2015) J. Struct. Biol. 192, 216-221: the CTF. doi:10.1016/j.jsb.2015.08.008
.. [2] Downing & Glaeser (2008) Ultramicroscopy 108, 921-928: how far defocus spreads a point, and the box
       that holds it. doi:10.1016/j.ultramic.2008.03.004
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch_ctf
from torch import Tensor

from ..errors import ConfigurationError, InputError
from ..io.particles import ParticleSet
from ..io.poses import read_ctf
from .rings import frequency_grid

#: of the phase shifts within a group
_PHASE_STEP_DEGREES = 15.0


@dataclass(frozen=True)
class CtfParameters:
    """CTF parameters of n images, each `(n,)` float32.

    Underfocus is positive; the angle is that of `defocus_u` from the x axis, as in RELION.
    """

    defocus_u_angstrom: Tensor
    defocus_v_angstrom: Tensor
    angle_degrees: Tensor
    voltage_kv: Tensor
    cs_mm: Tensor
    amplitude_contrast: Tensor
    phase_shift_degrees: Tensor

    def __getitem__(self, index: Tensor | slice) -> CtfParameters:
        return CtfParameters(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    @staticmethod
    def joined(parts: Sequence[CtfParameters]) -> CtfParameters:
        """Those of some images after those of others."""
        names = CtfParameters.__dataclass_fields__
        return CtfParameters(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def to(self, device: torch.device) -> CtfParameters:
        """The same on another device."""
        return CtfParameters(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def ctf(parameters: CtfParameters, pixel_size_angstrom: Tensor, box_px: int | tuple[int, int]) -> Tensor:
    """`(n, y, x // 2 + 1)` CTF on the rfft grid (not shifted), positive at low frequency.

    Protein is white in these images, so an underfocused CTF starts at `+amplitude_contrast`.

    Parameters
    ----------
    parameters
        n images.
    pixel_size_angstrom
        `(n,)`.
    box_px
        Side of the square image, or `(y, x)`.
    """
    u, v = parameters.defocus_u_angstrom, parameters.defocus_v_angstrom
    values: Tensor = torch_ctf.calculate_ctf_2d(
        defocus=(u + v) / 2e4,  # µm
        # torch-ctf takes the root of the astigmatism: u < v is the same ellipse turned by 90 degrees
        astigmatism=(u - v).abs() / 2e4,
        astigmatism_angle=parameters.angle_degrees + 90 * (u < v),
        voltage=parameters.voltage_kv,
        spherical_aberration=parameters.cs_mm,
        amplitude_contrast=parameters.amplitude_contrast,
        phase_shift=parameters.phase_shift_degrees,
        pixel_size=pixel_size_angstrom,
        image_shape=(box_px, box_px) if isinstance(box_px, int) else box_px,
        rfft=True,
        fftshift=False,
    )
    return values


def defocus_groups(parameters: CtfParameters, n_groups: int) -> tuple[Tensor, CtfParameters]:
    """Divide n images by their phase shift and their mean defocus into groups of about one size.

    Returns
    -------
    group
        `(n,)` int64, which group each image belongs to.
    parameters
        Of the groups, at most `n_groups`: their mean defocus and phase shift, without astigmatism.

    Raises
    ------
    ValueError
        When the images differ in something else, so that no CTF stands for a group, or there are fewer images
        than groups.
    """
    for name in ("voltage_kv", "cs_mm", "amplitude_contrast"):
        values = getattr(parameters, name)
        if float(values.max() - values.min()) > 1e-4 * float(values.abs().max()):
            raise ValueError(
                f"images of one {name} are expected; it runs from {values.min()} to {values.max()}"
            )
    if not 1 <= n_groups <= len(parameters):
        raise ValueError(f"{len(parameters)} images cannot be divided into {n_groups} groups")
    defocus, phase = _mean_defocus(parameters), parameters.phase_shift_degrees
    n_phases = max(1, min(n_groups, math.ceil(float(phase.max() - phase.min()) / _PHASE_STEP_DEGREES)))
    group = torch.empty(len(parameters), dtype=torch.int64)
    groups: list[Tensor] = []
    for alike in torch.tensor_split(phase.argsort(stable=True), n_phases):
        for members in torch.tensor_split(alike[defocus[alike].argsort()], n_groups // n_phases):
            group[members] = len(groups)
            groups.append(members)
    mean = torch.stack([defocus[members].mean() for members in groups])
    mean_phase = torch.stack([phase[members].mean() for members in groups])
    common = parameters[torch.stack([members[0] for members in groups])]
    return group, CtfParameters(
        *(mean, mean, torch.zeros_like(mean)),
        *(common.voltage_kv, common.cs_mm, common.amplitude_contrast, mean_phase),
    )


def nearest_group(parameters: CtfParameters, groups: CtfParameters) -> Tensor:
    """`(n,)` which of some groups each of n images is nearest to, by defocus and phase shift.

    1000 Å of defocus count as 9° of phase shift, what they make near 20 Å at 300 kV.
    """
    defocus = _mean_defocus(parameters)[:, None] - _mean_defocus(groups)
    phase = parameters.phase_shift_degrees[:, None] - groups.phase_shift_degrees
    return (defocus.abs() + phase.abs() * (1000.0 / 9.0)).argmin(1)


def _mean_defocus(parameters: CtfParameters) -> Tensor:
    return (parameters.defocus_u_angstrom + parameters.defocus_v_angstrom) / 2


def b_factor_envelope(b_factor: Tensor, pixel_size_angstrom: Tensor, box_px: int) -> Tensor:
    """`(n, box, box // 2 + 1)` fall-off exp(-B s² / 4) of the amplitudes on the rfft grid.

    Parameters
    ----------
    b_factor
        `(n,)`, Å², as rlnCtfBfactor: positive blurs.
    pixel_size_angstrom
        `(n,)`.
    """
    frequency = frequency_grid((box_px, box_px), b_factor.device) / pixel_size_angstrom[:, None, None]
    return torch.exp(-frequency.square() * (b_factor[:, None, None] / 4))


def electron_wavelength_angstrom(voltage_kv: Tensor) -> Tensor:
    """Relativistic wavelength in Å."""
    wavelength: Tensor = 1e10 * torch_ctf.calculate_relativistic_electron_wavelength(
        voltage_kv.double() * 1e3
    )
    return wavelength


def box_needed_px(parameters: CtfParameters, pixel_size_angstrom: Tensor) -> Tensor:
    """`(n,)` int64: the smallest even box whose samples follow the oscillations of the CTF.

    Detail of spatial frequency k is displaced by `wavelength defocus k - Cs wavelength³ k³` [2]_, the slope
    of the CTF's phase over 2π. Where this is more than half the box, neighbouring Fourier samples are more
    than half an oscillation apart: the CTF aliases, and the image wraps around.
    """
    wavelength = electron_wavelength_angstrom(parameters.voltage_kv)[:, None]
    finest = 2 * pixel_size_angstrom.double()[:, None]
    frequency = torch.linspace(0, 1, 257, dtype=torch.float64, device=finest.device) / finest
    spherical = parameters.cs_mm.double()[:, None] * 1e7 * wavelength**3 * frequency**3
    reach = torch.zeros(len(parameters), dtype=torch.float64, device=finest.device)
    for defocus in (parameters.defocus_u_angstrom, parameters.defocus_v_angstrom):
        displaced = (wavelength * defocus.double()[:, None] * frequency - spherical).abs()
        reach = torch.maximum(reach, displaced.amax(1))
    return 2 * (reach / pixel_size_angstrom.double()).ceil().long()


def check_ctf_sampling(parameters: CtfParameters, pixel_size_angstrom: Tensor, box_px: int) -> None:
    """Refuse a box in which the CTF of an image aliases, see `box_needed_px`.

    Raises
    ------
    ConfigurationError
        The box is too small: with the image, its defocus and the box needed.
    """
    needed = box_needed_px(parameters, pixel_size_angstrom)
    worst = int(needed.argmax())
    if int(needed[worst]) > box_px:
        size = float(pixel_size_angstrom[worst])
        raise ConfigurationError(
            f"the CTF oscillates faster than a box of {box_px} px can hold: image {worst + 1} with a defocus "
            f"of {float(parameters.defocus_u_angstrom[worst]):.0f} Å at {size:g} Å/px needs a box of "
            f"{int(needed[worst])} px to {2 * size:.3g} Å. Take a larger box, a "
            "smaller defocus, or a lower resolution."
        )


def ctf_parameters_of(particles: ParticleSet) -> CtfParameters:
    """The CTF parameters of a STAR or `.cs` table.

    Raises
    ------
    InputError
        The table lacks them, or they are impossible; `read_ctf` says more.
    """
    table = read_ctf(particles)
    return CtfParameters(
        *(torch.from_numpy(getattr(table, name)).float() for name in CtfParameters.__dataclass_fields__)
    )


def read_ctf_table(path: Path | str) -> CtfParameters:
    """Real CTF parameters from a float32 `.npy` table.

    Nine columns: box (px), pixel size (Å), defocus U and V (Å), angle (degrees), voltage (kV), Cs (mm),
    amplitude contrast, phase shift (radians).

    Raises
    ------
    InputError
        The file is missing, not such a table, or holds impossible values.
    """
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"expected a numpy table of CTF parameters: {error}.", path=path) from error
    if table.ndim != 2 or table.shape[1] != 9 or len(table) == 0:
        raise InputError(f"expected rows of nine columns, found an array {table.shape}.", path=path)
    columns = torch.from_numpy(np.ascontiguousarray(table[:, 2:].T, dtype=np.float32))
    if not bool(torch.isfinite(columns).all()) or bool((columns[3] <= 0).any()):
        raise InputError("expected finite numbers and positive voltages.", path=path)
    columns[6] = torch.rad2deg(columns[6])
    return CtfParameters(*columns.unbind())
