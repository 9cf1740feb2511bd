"""Adversarial losses: what a critic's outputs on true and on generated images are worth.

Critics return logits or scores `(n, ...)` without a sigmoid. Every pair of functions here gives the loss that
the critic minimises and the one that the generator minimises.

The (alpha, beta) family [1]_ [2]_ is the Beta family of proper scoring rules [3]_::

    S(t, 1) = - integral from t to 1 of c^(alpha - 1) (1 - c)^beta       dc
    S(t, 0) = - integral from 0 to t of c^alpha       (1 - c)^(beta - 1) dc

where t is the probability that the critic gives to "true". The critic maximises the mean of S(D(true), 1) +
S(D(generated), 0), the generator minimises it. (0, 0) is the logarithmic score of the first GAN, (1, 1) half
the squared error.

References
----------
.. [1] Gao, Yao & Zhu (2020) J. Mach. Learn. Res. 21, 160.
.. [2] Gu, Unarta, Huang & Yao (2020) arXiv:2008.07307, section 2.1.
.. [3] Buja, Stuetzle & Shen (2005) Loss functions for binary class probability estimation and classification.
.. [4] Arjovsky, Chintala & Bottou (2017) arXiv:1701.07875.
.. [5] Gulrajani et al. (2017) arXiv:1704.00028, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

_PANELS, _NODES = 24, 8
# beyond this logit 1 - t is exp(-logit) to float32
_TAIL = 18.0


def score_of_true(logit: Tensor, alpha: float, beta: float) -> Tensor:
    """S(t, 1) of t = sigmoid(logit), element by element, with its exact gradient.

    For beta = -1 the integral diverges at 1 whatever t is: it is then taken to t = 1/2, which leaves out a
    constant that no gradient sees.

    Raises
    ------
    ValueError
        alpha or beta lies outside [-1, 1].
    """
    if not (-1 <= alpha <= 1 and -1 <= beta <= 1):
        raise ValueError(f"alpha and beta must lie in [-1, 1], not {alpha} and {beta}")
    value: Tensor = _Score.apply(logit, alpha, beta)  # type: ignore[no-untyped-call]
    return value


def score_of_generated(logit: Tensor, alpha: float, beta: float) -> Tensor:
    """S(t, 0) of t = sigmoid(logit): the mirror image of S(t, 1), alpha and beta changing places."""
    return score_of_true(-logit, beta, alpha)


class _Score(torch.autograd.Function):
    """S(t, 1) as an integral over the logit u: t^alpha (1 - t)^(beta + 1), t = sigmoid(u), from logit up."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logit: Tensor, alpha: float, beta: float) -> Tensor:
        ctx.save_for_backward(logit)
        ctx.powers = (alpha, beta)  # type: ignore[attr-defined]
        top = 0.0 if beta == -1 else _TAIL
        start = logit.double() if beta == -1 else logit.double().clamp_max(top)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        unit = (np.arange(_PANELS)[:, None] + (nodes + 1) / 2).ravel() / _PANELS
        place = torch.from_numpy(unit).to(logit.device)
        weight = torch.from_numpy(np.tile(weights / 2 / _PANELS, _PANELS)).to(logit.device)
        length = top - start
        integrand = _density(start[..., None] + length[..., None] * place, alpha, beta)
        integral = (integrand * weight).sum(-1) * length
        if beta != -1:
            integral = integral + torch.exp(-(beta + 1) * logit.double().clamp_min(top)) / (beta + 1)
        return (-integral).to(logit.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (logit,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * _density(logit, *ctx.powers), None, None  # type: ignore[attr-defined]


def _density(logit: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.exp(alpha * logsigmoid(logit) + (beta + 1) * logsigmoid(-logit))


def alpha_beta_critic_loss(true: Tensor, generated: Tensor, alpha: float, beta: float) -> Tensor:
    """What the critic of the (alpha, beta)-GAN minimises, from its logits."""
    return -(score_of_true(true, alpha, beta).mean() + score_of_generated(generated, alpha, beta).mean())


def alpha_beta_generator_loss(generated: Tensor, alpha: float, beta: float) -> Tensor:
    """What the generator of the (alpha, beta)-GAN minimises: the critic's score for its images."""
    return score_of_generated(generated, alpha, beta).mean()


def wasserstein_critic_loss(true: Tensor, generated: Tensor) -> Tensor:
    """Mean score of the generated less that of the true images: minus the Wasserstein distance [4]_."""
    return generated.mean() - true.mean()


def wasserstein_generator_loss(generated: Tensor) -> Tensor:
    """Minus the mean score of the generated images [4]_."""
    return -generated.mean()


def clip_weights(critic: nn.Module, limit: float) -> None:
    """Keep every weight of the critic within +-limit, so that it stays Lipschitz [4]_."""
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.clamp_(-limit, limit)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], true: Tensor, generated: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of (|gradient of the critic| - 1)² at random points between true and generated images [5]_.

    Parameters
    ----------
    critic
        Scores of images.
    true, generated
        `(n, c, y, x)`.
    generator
        Draws the points; on the CPU.
    """
    share = torch.rand(len(true), 1, 1, 1, generator=generator).to(true.device)
    between = (share * true + (1 - share) * generated).detach().requires_grad_(True)
    # of an image's score, which is the mean of a critic's map of them
    scores = critic(between).reshape(len(true), -1).mean(1)
    (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    # the square root has no gradient at 0
    norm = (gradient.float().square().sum(dim=(1, 2, 3)) + 1e-12).sqrt()
    return (norm - 1).square().mean()
