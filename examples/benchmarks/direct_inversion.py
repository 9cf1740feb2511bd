"""A volume from images in known poses, by direct Fourier inversion with the CTF as weight.

The transform of a projection is a central slice of the transform of the volume. With images `F_i`, CTFs
`c_i` and weights `w_i`, inserted with the trilinear kernel, the least-squares volume is [1]_ [2]_::

    V = sum_i(w_i c_i F_i) / (sum_i(w_i c_i²) + regularisation)

Both sums live on a grid of the padded box, so memory does not depend on the number of images: 4 GB at 256 px.
Insertion convolves with the trilinear kernel, which multiplies the volume by sinc²; that is divided out.

References
----------
.. [1] Penczek (2010) Methods Enzymol. 482, 1-33, doi:10.1016/S0076-6879(10)82001-4: direct Fourier inversion.
.. [2] Scheres (2012) J. Struct. Biol. 180, 519-530, doi:10.1016/j.jsb.2012.09.006: the same sums, with
   the ratio of the powers of noise and signal in place of our constant. Differs from the paper in that the
   weights are not made even by iterative gridding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fourier_slice import insert_central_slices_rfft_3d_multichannel


class Reconstruction:
    """Takes images in, batch by batch, and gives their volume at any time.

    Parameters
    ----------
    box_px
        Side of the images and of the volume, even.
    pad_factor
        Zero padding of images and volume: 2 keeps the error of trilinear insertion small.
    symmetry
        `(s, 3, 3)` rotations of the volume's frame under which the particle looks alike, the identity among
        them; every image is then inserted s times. None: the particle has no symmetry.
    """

    def __init__(self, box_px: int, *, pad_factor: int = 2, symmetry: Tensor | None = None) -> None:
        if box_px < 2 or box_px % 2:
            raise ValueError(f"the box must be even, not {box_px} px")
        self.box_px = box_px
        self.padded_px = pad_factor * box_px
        self._margin = (self.padded_px - box_px) // 2
        # inserted at once: few, to stay near the cache, yet enough to be worth a volume of temporaries
        self._batch = max(8, self.padded_px // 32)
        self._symmetry = torch.eye(3)[None] if symmetry is None else symmetry.float()
        shape = (self.padded_px, self.padded_px, self.padded_px // 2 + 1)
        self._data = torch.zeros(shape, dtype=torch.complex64)
        self._weight = torch.zeros(shape)

    def add(
        self,
        images: Tensor,
        rotations: Tensor,
        *,
        transfer: Tensor | None = None,
        shifts_px: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Insert images; only sums are kept.

        Parameters
        ----------
        images
            `(n, box, box)`, background 0, centre on pixel `box // 2`.
        rotations
            `(n, 3, 3)`, as `projection.rotations_from_euler` gives them: those that `Projector` takes.
        transfer
            `(n, padded, padded // 2 + 1)` CTF on the grid of `torch.fft.rfft2` of the padded image:
            `ctf(parameters, pixel_size, reconstruction.padded_px)`. None: no CTF.
        shifts_px
            `(n, 2)` (y, x): where the particle's centre lies relative to the image's, pixels. RELION's
            rlnOriginYAngst and rlnOriginXAngst are its negative times the pixel size. None: centred.
        weights
            `(n,)`, not negative; a figure of merit, or a posterior probability. None: all 1.

        Raises
        ------
        ValueError
            When the shapes do not fit together.
        """
        n, box, padded = len(images), self.box_px, self.padded_px
        expected = {
            "images": (images, (n, box, box)),
            "rotations": (rotations, (n, 3, 3)),
            "transfer": (transfer, (n, padded, padded // 2 + 1)),
            "shifts_px": (shifts_px, (n, 2)),
            "weights": (weights, (n,)),
        }
        for name, (values, shape) in expected.items():
            if values is not None and tuple(values.shape) != shape:
                raise ValueError(f"{name}: expected the shape {shape}, found {tuple(values.shape)}")
        for first in range(0, n, self._batch):
            here = slice(first, first + self._batch)
            slices = self._slices(images[here], None if shifts_px is None else shifts_px[here])
            here_transfer = torch.ones(()) if transfer is None else transfer[here]
            here_weight = torch.ones(()) if weights is None else weights[here, None, None]
            weighted = slices * here_transfer * here_weight
            squared = (here_transfer.square() * here_weight).expand(slices.shape)
            self._insert(torch.stack([weighted, squared.to(slices.dtype)], dim=1), rotations[here])

    def volume(self, regularisation: float = 1e-3) -> Tensor:
        """`(box, box, box)` volume (z, y, x) of all images so far, on their grey scale, zero without images.

        Parameters
        ----------
        regularisation
            What is added to the weights, as a share of their mean over the Fourier shell: the volume's ratio
            of noise power to signal power would make it a Wiener filter. The default is far below that of any
            shell of interest: it merely keeps the voxels that hardly any image reached from being noise.
        """
        floor = regularisation * self._shell_mean_weight()
        transform = self._data / (self._weight + floor).clamp_min(torch.finfo(torch.float32).tiny)
        side = self.padded_px
        volume = torch.fft.irfftn(torch.fft.ifftshift(transform, dim=(0, 1)), s=(side, side, side))
        inside = slice(self._margin, self._margin + self.box_px)
        volume = torch.fft.fftshift(volume)[inside, inside, inside]
        sinc = torch.sinc(torch.fft.fftshift(torch.fft.fftfreq(side))[inside])
        corrected: Tensor = volume / (sinc[:, None, None] * sinc[None, :, None] * sinc[None, None, :]) ** 2
        return corrected

    def _slices(self, images: Tensor, shifts_px: Tensor | None) -> Tensor:
        """`(n, padded, padded // 2 + 1)` transforms of the padded images, the particle at the origin."""
        padded = torch.nn.functional.pad(images.float(), [self._margin] * 4)
        slices: Tensor = torch.fft.rfft2(torch.fft.ifftshift(padded, dim=(-2, -1)))
        if shifts_px is None:
            return slices
        y, x = torch.fft.fftfreq(self.padded_px)[:, None], torch.fft.rfftfreq(self.padded_px)
        cycles = shifts_px[:, :1, None] * y + shifts_px[:, 1:, None] * x
        return slices * torch.polar(torch.ones_like(cycles), 2 * torch.pi * cycles)

    def _insert(self, slices: Tensor, rotations: Tensor) -> None:
        """Add `(n, 2, padded, padded // 2 + 1)` numerators and denominators to the sums."""
        slices = torch.fft.fftshift(slices, dim=-2)
        for operator in self._symmetry:
            sums, _ = insert_central_slices_rfft_3d_multichannel(
                slices, (self.padded_px,) * 3, operator @ rotations.float(), fftfreq_max=0.5
            )
            self._data += sums[0]
            self._weight += sums[1].real

    def _shell_mean_weight(self) -> Tensor:
        """The mean weight of each voxel's shell, one voxel of the padded transform wide."""
        axis = torch.fft.fftshift(torch.fft.fftfreq(self.padded_px, 1 / self.padded_px)).square()
        half = torch.arange(self.padded_px // 2 + 1).square()
        squared = axis[:, None, None] + axis[None, :, None] + half
        shell = squared.sqrt().round().long().flatten()
        total = torch.bincount(shell, self._weight.flatten()) / torch.bincount(shell)
        return total[shell].reshape(self._weight.shape)


def reconstruct(
    images: Tensor,
    rotations: Tensor,
    *,
    transfer: Tensor | None = None,
    shifts_px: Tensor | None = None,
    weights: Tensor | None = None,
    symmetry: Tensor | None = None,
    pad_factor: int = 2,
    regularisation: float = 1e-3,
) -> Tensor:
    """`(d, d, d)` volume of `(n, d, d)` images that are all at hand; parameters as in `Reconstruction`."""
    reconstruction = Reconstruction(images.shape[-1], pad_factor=pad_factor, symmetry=symmetry)
    reconstruction.add(images, rotations, transfer=transfer, shifts_px=shifts_px, weights=weights)
    return reconstruction.volume(regularisation)
