"""The contrast transfer function, with RELION's parameters and sign."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch_ctf
from torch import Tensor

from ..errors import InputError


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

    def __getitem__(self, index: Tensor) -> CtfParameters:
        return CtfParameters(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)


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
    """Divide n images by their mean defocus into groups of about one size.

    Returns
    -------
    group
        `(n,)` int64, which group each image belongs to.
    parameters
        Of the groups: their mean defocus, without astigmatism.

    Raises
    ------
    ValueError
        When the images differ in something else than defocus, so that no CTF stands for a group, or there are
        fewer images than groups.
    """
    for name in ("voltage_kv", "cs_mm", "amplitude_contrast", "phase_shift_degrees"):
        values = getattr(parameters, name)
        if float(values.max() - values.min()) > 1e-4 * float(values.abs().max()):
            raise ValueError(
                f"images of one {name} are expected; it runs from {values.min()} to {values.max()}"
            )
    if not 1 <= n_groups <= len(parameters):
        raise ValueError(f"{len(parameters)} images cannot be divided into {n_groups} groups")
    defocus = (parameters.defocus_u_angstrom + parameters.defocus_v_angstrom) / 2
    group = torch.empty(len(parameters), dtype=torch.int64)
    first, means = [], []
    for number, members in enumerate(torch.tensor_split(defocus.argsort(), n_groups)):
        group[members] = number
        first.append(int(members[0]))
        means.append(defocus[members].mean())
    mean = torch.stack(means)
    common = parameters[torch.tensor(first)]
    return group, CtfParameters(
        *(mean, mean, torch.zeros_like(mean)),
        *(common.voltage_kv, common.cs_mm, common.amplitude_contrast, common.phase_shift_degrees),
    )


def read_ctf_table(path: Path | str) -> CtfParameters:
    """Real CTF parameters from a float32 `.npy` table.

    Nine columns: box (px), pixel size (Å), defocus U and V (Å), angle (degrees), voltage (kV), Cs (mm),
    amplitude contrast, phase shift (radians).

    Raises
    ------
    InputError
        The file is missing, or not such a table.
    """
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"expected a numpy table of CTF parameters: {error}.", path=path) from error
    if table.ndim != 2 or table.shape[1] != 9 or len(table) == 0:
        raise InputError(f"expected rows of nine columns, found an array {table.shape}.", path=path)
    columns = torch.from_numpy(np.ascontiguousarray(table[:, 2:].T, dtype=np.float32))
    columns[6] = torch.rad2deg(columns[6])
    return CtfParameters(*columns.unbind())
