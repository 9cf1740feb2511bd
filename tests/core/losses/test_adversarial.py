import math

import pytest
import torch
from scipy.integrate import quad

from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.losses.adversarial import (
    alpha_beta_critic_loss,
    alpha_beta_generator_loss,
    clip_weights,
    gradient_penalty,
    score_of_generated,
    score_of_true,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)
from cryohush.core.models.pix2pix import ConvolutionalCritic

LOGITS = torch.tensor([-6.0, -1.5, -0.2, 0.0, 0.7, 2.5, 6.0], dtype=torch.float64)
PAIRS = [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (-0.5, -0.5), (0.3, -0.8), (-1.0, 0.4), (0.2, 1.0), (-0.9, -0.9)]


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
def test_scores_are_the_integrals_that_define_them(alpha, beta):
    for logit, true, generated in zip(
        LOGITS, score_of_true(LOGITS, alpha, beta), score_of_generated(LOGITS, alpha, beta), strict=True
    ):
        t = 1 / (1 + math.exp(-float(logit)))
        if beta > -1:
            assert float(true) == pytest.approx(-tail(1 - t, beta, alpha), rel=1e-6)
        if alpha > -1:
            assert float(generated) == pytest.approx(-tail(t, alpha, beta), rel=1e-6)


def tail(width: float, near: float, far: float) -> float:
    """Integral of x^near (1 - x)^(far - 1) from 0 to width; v = x^(near + 1) takes the singularity away."""
    power = 1 / (near + 1)
    integral = quad(lambda v: power * (1 - v**power) ** (far - 1), 0, width ** (near + 1), epsabs=1e-11)
    return float(integral[0])


@pytest.mark.parametrize(("alpha", "beta"), [*PAIRS, (0.5, -1.0)])
def test_gradients_are_those_of_the_integrals(alpha, beta):
    logits = LOGITS.clone().requires_grad_(True)
    t = torch.sigmoid(LOGITS)
    slope = t * (1 - t)  # of the sigmoid
    (gradient,) = torch.autograd.grad(score_of_true(logits, alpha, beta).sum(), logits)
    torch.testing.assert_close(gradient, t ** (alpha - 1) * (1 - t) ** beta * slope)
    (gradient,) = torch.autograd.grad(score_of_generated(logits, beta, alpha).sum(), logits)
    torch.testing.assert_close(gradient, -(t**beta) * (1 - t) ** (alpha - 1) * slope)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, -1.0), (-1.0, -1.0)])
def test_gradient_is_the_slope_of_the_value(alpha, beta):
    logits = LOGITS.clone().requires_grad_(True)
    # central differences of a smooth function in double precision
    assert torch.autograd.gradcheck(lambda z: score_of_true(z, alpha, beta), logits, eps=1e-5, atol=1e-6)


def test_zero_zero_is_the_log_score_and_one_one_half_the_squared_error():
    t = torch.sigmoid(LOGITS)
    torch.testing.assert_close(score_of_true(LOGITS, 0, 0), t.log(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(score_of_generated(LOGITS, 0, 0), (1 - t).log(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(score_of_true(LOGITS, 1, 1), -((1 - t) ** 2) / 2, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(score_of_generated(LOGITS, 1, 1), -(t**2) / 2, rtol=1e-8, atol=1e-12)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-80.0, 80.0], requires_grad=True)
    for alpha, beta in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        value = score_of_true(logits, alpha, beta)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
    assert float(score_of_true(torch.tensor(-80.0), 0, 0)) == pytest.approx(-80, rel=1e-4)  # log t


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.0), (0.0, -1.01)])
def test_powers_out_of_range_are_refused(alpha, beta):
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        score_of_true(LOGITS, alpha, beta)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (-0.5, 0.3)])
def test_score_is_proper(alpha, beta):
    """With a share p of true images the best constant answer of the critic is p."""
    share = 0.3
    logits = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    scores = share * score_of_true(logits, alpha, beta) + (1 - share) * score_of_generated(
        logits, alpha, beta
    )
    # the grid of logits is 0.002 apart
    assert float(torch.sigmoid(logits[scores.argmax()])) == pytest.approx(share, abs=1e-3)


def test_log_score_losses_are_those_of_cross_entropy():
    true, generated = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).unbind()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = entropy(true, torch.ones(64)) + entropy(generated, torch.zeros(64))
    torch.testing.assert_close(alpha_beta_critic_loss(true, generated, 0, 0), expected)
    torch.testing.assert_close(
        alpha_beta_generator_loss(generated, 0, 0), -entropy(generated, torch.zeros(64))
    )


def test_wasserstein_losses_are_differences_of_means():
    assert wasserstein_critic_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0])) == -1.0
    assert wasserstein_generator_loss(torch.tensor([3.0, 1.0])) == -2.0


def test_clipping_bounds_every_weight():
    critic = torch.nn.Conv2d(1, 4, 3)
    before = critic.weight.clone()
    clip_weights(critic, 0.05)
    torch.testing.assert_close(critic.weight, before.clamp(-0.05, 0.05))
    assert critic.bias is not None
    assert critic.bias.abs().max() <= 0.05


@pytest.mark.parametrize("slope", [1.0, 3.0])
def test_penalty_of_a_linear_critic_is_its_slope_less_one_squared(slope):
    direction = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))
    direction *= slope / direction.norm()
    generator = torch.Generator().manual_seed(2)
    true, generated = torch.randn(2, 5, 1, 4, 4, generator=generator).unbind()
    penalty = gradient_penalty(
        lambda x: (x * direction).sum(dim=(1, 2, 3)), true, generated, generator=generator
    )
    assert float(penalty) == pytest.approx((slope - 1) ** 2, abs=1e-5)


def wasserstein_distance(clipped, steps=40):
    """What a critic with clipped weights makes of blurs of two widths, after some steps."""
    torch.manual_seed(1)
    critic = ConvolutionalCritic(channels=1, width=16, clipped=clipped)
    clip_weights(critic, 0.001)
    optimiser = torch.optim.SGD(critic.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        narrow, wide = (
            gaussian_filter(torch.randn(16, 32, 32, generator=generator), width)[:, None]
            for width in (1.0, 3.0)
        )
        loss = wasserstein_critic_loss(critic(narrow / narrow.std()), critic(wide / wide.std()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        clip_weights(critic, 0.001)
    return -float(loss.detach())


def test_critic_with_clipped_weights_tells_images_apart_where_its_normalisation_is_not_clipped():
    assert wasserstein_distance(clipped=True) > 1e-3
    assert abs(wasserstein_distance(clipped=False)) < 1e-6
