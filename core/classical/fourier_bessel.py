"""A steerable basis of particle images: Fourier-Bessel functions on a disc of Fourier space.

`J_k(root * frequency) exp(i k angle)`: a turn of the image in the plane multiplies a coefficient by a phase.

References
----------
.. [1] Zhao, Shkolnisky & Singer (2016) IEEE Trans. Comput. Imaging 2, 1-12, doi:10.1109/TCI.2016.2514700: the
   basis, and which of its functions a sampled image supports.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FourierBesselBasis:
    """Steerable basis of real square images.

    Parameters
    ----------
    box_px
        Side, even.
    radius_px
        The particle lies within this distance of the centre, pixel `box // 2`; half the box by default.
    band_limit
        Highest frequency in cycles per pixel, at most 0.5. The cost goes with its fourth power.

    Attributes
    ----------
    box_px, radius_px
        As given, or what they came to.
    angular
        `(functions,)` angular frequency `k >= 0` of each function, ascending. Those with `-k` belong to them
        and have the conjugate coefficients (up to sign).

    Notes
    -----
    A function turns by a quarter with a factor `i**k`, so that analysis and synthesis need a quarter of the
    disc only, once for each `k mod 4`.
    """

    def __init__(self, box_px: int, radius_px: float | None = None, band_limit: float = 0.5) -> None:
        if box_px % 2 or box_px < 8:
            raise ValueError(f"the box must be even and at least 8 px, found {box_px}")
        if not 0 < band_limit <= 0.5:
            raise ValueError(f"the band limit must lie above 0 and at most at 0.5, found {band_limit}")
        self.box_px = box_px
        radius_px = min(radius_px or box_px / 2, box_px / 2)
        self.radius_px = radius_px
        edge = band_limit * box_px  # radius of the disc in Fourier pixels
        orders, roots = _bessel_roots(2 * math.pi * band_limit * radius_px)
        self.angular = orders
        axis = torch.arange(math.ceil(edge))
        x, y = torch.meshgrid(axis, axis, indexing="xy")
        quarter = (x.square() + y.square() < edge**2) & ((x > 0) | ((x == 0) & (y == 0)))
        self._x, self._y = x[quarter], y[quarter]
        self._centre = int(((self._x == 0) & (self._y == 0)).nonzero())
        # the radial parts are the same all along a circle
        squared, self._circle = torch.unique(self._x.square() + self._y.square(), return_inverse=True)
        self._points = torch.bincount(self._circle).float()  # of each circle in the quarter
        times = torch.where(squared > 0, 4 * self._points, 1.0).double()  # and on all of it
        table = _BesselTable(int(orders.max()), float(roots.max()))
        radial = table(orders[:, None], roots[:, None] * (squared.double().sqrt() / edge))
        radial /= (times * radial.square()).sum(1, keepdim=True).sqrt()
        self._radial = (radial * times.sqrt()).float()
        phase = torch.arange(int(orders.max()) + 1)[:, None] * torch.atan2(self._y.double(), self._x.double())
        turns = torch.polar(torch.ones_like(phase), phase).to(torch.complex64)
        self._functions = []
        self._members = []
        for residue in range(4):
            members = (orders % 4 == residue).nonzero().squeeze(1)
            self._functions.append(turns[orders[members]] * radial[members].float()[:, self._circle])
            self._members.append(members)

    def __len__(self) -> int:
        return len(self.angular)

    def analyse(self, images: Tensor) -> Tensor:
        """`(n, y, x)` to `(n, functions)` complex64 coefficients; white noise keeps its variance in each."""
        transform = torch.fft.rfft2(torch.fft.ifftshift(images.float(), dim=(-2, -1)), norm="ortho")
        straight = transform[:, self._y, self._x]
        # a quarter turn takes (x, y) to (-y, x), the conjugate of (y, -x)
        turned = transform[:, (-self._x) % self.box_px, self._y].conj()
        straight[:, self._centre] /= 4  # the quarters meet there
        turned[:, self._centre] /= 4
        even, odd = straight.real, straight.imag
        even_turned, odd_turned = turned.real, turned.imag
        # twice the sum over the quarter turns j of i**(-j k) times the values there, for k mod 4
        by_residue = (
            (2 * (even + even_turned)).to(torch.complex64),
            2 * torch.complex(odd_turned, odd),
            (2 * (even - even_turned)).to(torch.complex64),
            2 * torch.complex(-odd_turned, odd),
        )
        coefficients = torch.empty(len(images), len(self), dtype=torch.complex64)
        for values, functions, members in zip(by_residue, self._functions, self._members, strict=True):
            coefficients[:, members] = values @ functions.conj().T
        return coefficients

    def radial_operators(self, transfer: Tensor) -> list[Tensor]:
        """What factors in Fourier space, such as a CTF, do to the coefficients.

        Parameters
        ----------
        transfer
            `(g, y, x // 2 + 1)` on the grid of `torch.fft.rfft2`. Only its mean over each circle counts:
            nothing else keeps angular frequencies apart. Give the CTF of the mean defocus, for averaging an
            astigmatic one over its angles dampens it.

        Returns
        -------
        For each angular frequency symmetric `(g, q, q)` that multiply its q coefficients.
        """
        around = transfer[:, self._y, self._x] + transfer[:, (-self._x) % self.box_px, self._y]
        profile = torch.zeros(len(transfer), len(self._points))
        profile.index_add_(1, self._circle, around.float()).div_(2 * self._points)
        operators = []
        for order in range(int(self.angular.max()) + 1):
            radial = self._radial[self.angular == order]
            operators.append((radial * profile[:, None]) @ radial.T)
        return operators

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """`(n, functions)` coefficients to `(n, y, x)` images."""
        pair = torch.where(self.angular > 0, 2.0, 1.0)
        parts = [
            (coefficients[:, members] * pair[members]) @ functions
            for functions, members in zip(self._functions, self._members, strict=True)
        ]
        straight = torch.complex((parts[0] + parts[2]).real, (parts[1] + parts[3]).imag)
        turned = torch.complex((parts[0] - parts[2]).real, (parts[1] - parts[3]).real)
        box = self.box_px
        transform = torch.zeros(len(coefficients), box, box // 2 + 1, dtype=torch.complex64)
        transform[:, self._y, self._x] = straight
        transform[:, (-self._x) % box, self._y] = turned.conj()
        # the column x = 0 holds both halves of its points
        column = self._y == 0
        transform[:, self._x[column], 0] = turned[:, column]
        images = torch.fft.irfft2(transform, s=(box, box), norm="ortho")
        centred: Tensor = torch.fft.fftshift(images, dim=(-2, -1))
        return centred


class _BesselTable:
    """Bessel functions of the first kind, by interpolation: torch has orders 0 and 1 only.

    `exp(i x sin t)` is the sum of `J_k(x) exp(i k t)`, so one Fourier transform over t gives all orders at x.
    """

    step = 1 / 32

    def __init__(self, largest_order: int, largest_argument: float) -> None:
        samples = 2 * (largest_order + math.ceil(largest_argument) + 64)
        argument = torch.arange(-1, math.ceil(largest_argument / self.step) + 3, dtype=torch.float64)
        t = torch.arange(samples, dtype=torch.float64) * (2 * torch.pi / samples)
        parts = []
        for piece in torch.split(argument * self.step, 1024):
            phase = piece[:, None] * t.sin()
            wave = torch.polar(torch.ones_like(phase), phase)
            parts.append((torch.fft.fft(wave, dim=1) / samples).real[:, : largest_order + 1])
        self.values = torch.cat(parts)

    def __call__(self, order: Tensor, argument: Tensor) -> Tensor:
        """`J_order(argument)` to 1e-7, by cubic interpolation; `order` expands to the arguments."""
        place = argument / self.step
        index = place.floor().long()
        f = place - index
        order = order.expand_as(index)
        weights = (
            -f * (f - 1) * (f - 2) / 6,
            (f + 1) * (f - 1) * (f - 2) / 2,
            -(f + 1) * f * (f - 2) / 2,
            (f + 1) * f * (f - 1) / 6,
        )
        # the table begins one step below 0
        return torch.stack([w * self.values[index + i, order] for i, w in enumerate(weights)]).sum(0)


def _bessel_roots(largest: float) -> tuple[Tensor, Tensor]:
    """Orders and roots of the functions that fit: those whose next root of the same order is below `largest`.

    Order 0 keeps one function at least.
    """
    largest_order = math.ceil(largest)
    table = _BesselTable(largest_order + 1, largest + 1)
    values = table.values[1:-4]
    orders, roots = [], []
    for order in range(largest_order + 1):
        column = values[1:, order]
        change = (column[:-1] * column[1:] < 0).nonzero().squeeze(1)
        change = change[change * table.step >= order]  # every root is above; below, rounding changes signs
        left, right = column[change], column[change + 1]
        root = (change + 1 + left / (left - right)) * table.step
        # J' = (J_{k-1} - J_{k+1}) / 2, and J_{-1} = -J_1: one step of Newton from 1e-4 off
        here = torch.tensor(order)
        before = -table(here + 1, root) if order == 0 else table(here - 1, root)
        root = root - table(here, root) / ((before - table(here + 1, root)) / 2)
        n = int((root <= largest).sum()) - 1
        n = max(n, 1) if order == 0 else n
        if n < 1:
            break
        orders.append(torch.full((n,), order))
        roots.append(root[:n])
    return torch.cat(orders), torch.cat(roots)
