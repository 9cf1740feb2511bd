"""The detector: how it blurs the signal (MTF) and what it adds to the noise (DQE).

References
----------
.. [1] Meyer & Kirkland (2000) Microsc. Res. Tech. 49, 269-280: MTF, noise spectrum and DQE of a camera.
.. [2] McMullan, Faruqi, Clare & Henderson (2014) Ultramicroscopy 147, 156-163: direct detectors.
       doi:10.1016/j.ultramic.2014.08.002
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, StarError
from ..io.columns import read_columns
from .rings import frequency_grid

_FREQUENCY, _VALUE = "rlnResolutionInversePixel", "rlnMtfValue"


@dataclass(frozen=True, eq=False)
class DetectorCurve:
    """An MTF or DQE.

    Attributes
    ----------
    frequency_per_px
        `(n,)` ascending, cycles per physical pixel of the detector.
    value
        `(n,)`, 0 to 1 (rounding apart).
    """

    frequency_per_px: NDArray[np.float64]
    value: NDArray[np.float64]

    def on_grid(self, box_px: int, binning: float = 1.0) -> Tensor:
        """`(box, box // 2 + 1)` values on the rfft grid of an image, linear between the curve's points.

        Parameters
        ----------
        binning
            Pixel size of the image over that of the detector; 0.5 for a pixel of super-resolution.
        """
        frequency = frequency_grid((box_px, box_px)).double().numpy() / binning
        values = np.interp(frequency, self.frequency_per_px, self.value)
        return torch.from_numpy(values).float()


def read_detector_curve(path: Path | str) -> DetectorCurve:
    """Read a curve in the form of RELION's MTF files: rlnResolutionInversePixel and rlnMtfValue.

    A DQE is written with the same columns.

    Raises
    ------
    StarError
        The file is no STAR file, or lacks these columns.
    InputError
        The frequencies do not rise from 0 or above, or a value lies outside of 0 to 1.5.
    """
    path = Path(path)
    found = read_columns(path, number=(_FREQUENCY, _VALUE))
    if found is None:
        raise StarError(f"no table with the columns _{_FREQUENCY} and _{_VALUE}.", path=path)
    if len(found) < 2:
        raise InputError(f"expected a curve, found {len(found)} points.", path=path)
    frequency, value = (np.array(found.number[label]) for label in (_FREQUENCY, _VALUE))
    if not (frequency[0] >= 0 and (np.diff(frequency) > 0).all()):
        raise InputError(f"expected rising frequencies in _{_FREQUENCY}.", path=path)
    if not ((value >= 0) & (value <= 1.5)).all():  # noise of the measurement lifts some above 1
        raise InputError(f"expected values from 0 to 1 in _{_VALUE}.", path=path)
    return DetectorCurve(frequency, value)


def detector_gains(
    mtf: DetectorCurve, box_px: int, *, dqe: DetectorCurve | None = None, binning: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What to multiply the amplitudes of the signal and of the shot noise by, each `(box, box // 2 + 1)`.

    The signal gets the MTF. From `DQE = DQE(0) MTF² / NNPS` [1]_ the noise gets `MTF sqrt(DQE(0) / DQE)`.
    Without a DQE the noise is white, as that of counting detectors nearly is [2]_.

    Raises
    ------
    InputError
        The DQE is 0 somewhere within the image's frequencies.
    """
    signal = mtf.on_grid(box_px, binning)
    if dqe is None:
        return signal, torch.ones_like(signal)
    efficiency = dqe.on_grid(box_px, binning)
    if not bool((efficiency > 0).all()):
        raise InputError("the DQE falls to 0 within the frequencies of the image.")
    return signal, signal * (dqe.value[0] / efficiency).sqrt()
