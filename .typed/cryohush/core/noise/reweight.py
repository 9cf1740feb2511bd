"""Contrast-guided re-weighting: noise of one source put on a clean image with the contrast of a third.

A clean patch S, a piece of noise V and a simulated noisy reference X of S give, by least squares over the
pixels [1]_::

    minimise over alpha, beta, gamma   |alpha S + beta (V - mean V) + gamma - X|^2             (equation 4)

and the noisy patch is::

    alpha S + (1 + beta) (V - mean V) + gamma

V knows nothing of the noise in X, so that beta alone is 0 but for chance (its spread is one over the root of
the number of independent pixels): the 1 keeps the noise, beta varies it. Equation, centred V and the 1 are
as in the authors' program, which minimises by iteration what has a closed form.

References
----------
.. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.2.3. doi:10.1093/bioinformatics/btac052
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of patches whose variance is below this share of their mean square, all that varies is rounding.
_ROUNDING = 1e-10
# S and V whose correlation is nearer to 1 than this are one and the same direction to float32.
_COLLINEAR = 1e-5


@dataclass(frozen=True, eq=False)
class Weights:
    """Of equation 4, one for each patch.

    Attributes
    ----------
    alpha
        `(...)` of the clean patch.
    beta
        `(...)` of the noise.
    gamma
        `(...)` constant.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor


def fit_weights(clean: Tensor, noise: Tensor, reference: Tensor) -> Weights:
    """Least-squares weights of equation 4, in closed form.

    Where the patches do not determine them, those of the smallest norm in units of the patches' standard
    deviations are returned: a constant patch gets weight 0, and of collinear patches each gets half.

    Parameters
    ----------
    clean, noise, reference
        `(..., y, x)`, all of one shape, on any scale.
    """
    s, s_mean, s_norm = _unit(clean)
    v, _, v_norm = _unit(noise)
    x = reference.flatten(-2).double()
    x_mean = x.mean(dim=-1)
    x = x - x_mean[..., None]
    sx, vx, sv = (s * x).sum(-1), (v * x).sum(-1), (s * v).sum(-1)
    along = (1 - sv.abs()) < _COLLINEAR
    det = torch.where(along, 1.0, 1 - sv.square())
    # of collinear unit vectors the normal equations have one row: (s . x) / 2 each, with the sign of sv
    alpha = torch.where(along, sx / 2, (sx - sv * vx) / det)
    beta = torch.where(along, vx / 2, (vx - sv * sx) / det)
    alpha, beta = alpha / s_norm, beta / v_norm
    gamma = x_mean - alpha * s_mean
    return Weights(*(value.to(reference.dtype) for value in (alpha, beta, gamma)))


def reweight(clean: Tensor, noise: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy and clean patches with the reference's contrast.

    The noise first gets the spread that the reference has beside the clean patch. A negative alpha, which
    only chance can give, counts as 0: the pair is then one of noise alone.

    Differs from the authors' program: it stretches S, V and X each between its extremes, which in noise are
    chance, to make their scales alike; here the standard deviation does it. And its clean image keeps its own
    scale, where here it is `alpha S + gamma`: a denoised image shall have the scale of the noisy one.

    Parameters
    ----------
    clean, noise, reference
        `(..., y, x)`, all of one shape. Several pieces of noise for one clean patch are several rows.

    Returns
    -------
    noisy, target
        `(..., y, x)`.
    """
    alone = fit_weights(clean, torch.zeros_like(noise), reference)
    rest = reference - alone.alpha[..., None, None] * clean
    noise = noise - noise.mean(dim=(-2, -1), keepdim=True)
    spread = noise.std(dim=(-2, -1), correction=0, keepdim=True)
    wanted = rest.std(dim=(-2, -1), correction=0, keepdim=True)
    noise = noise * torch.where(spread > 0, wanted / spread, 0.0)
    weights = fit_weights(clean, noise, reference)
    target = weights.alpha.clamp_min(0)[..., None, None] * clean + weights.gamma[..., None, None]
    return target + (1 + weights.beta)[..., None, None] * noise, target


def _unit(patch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat patches `(..., pixels)` of mean 0 and norm 1, 0 if constant; their mean, and norm (then 1)."""
    flat = patch.flatten(-2).double()
    mean = flat.mean(dim=-1)
    centred = flat - mean[..., None]
    square = centred.square().sum(-1)
    constant = square <= _ROUNDING * flat.square().sum(-1)
    norm = torch.where(constant, 1.0, square.sqrt())
    return torch.where(constant[..., None], 0.0, centred / norm[..., None]), mean, norm
