"""Adversarial losses: pure functions of the critic's logits.

Each loss is a pair of functions (real_logits, fake_logits) -> scalar, both to be minimised: `critic` by the
critic's parameters, `generator` by the generator's. Logits may have any shape, `[N]`, `[N, 1]` or maps
`[N, ...]`; every mean E is over all their elements. bf16 and fp16 logits are widened to fp32 first. x stands
for real samples, x~ for generated ones, D for the logit (no sigmoid), and log sigmoid(D) is -softplus(-D),
which cannot overflow.

Wasserstein GANs with weight clipping and with a gradient penalty (WGAN-GP) both use `WASSERSTEIN`: clipping
is the optimiser's business and the penalty that of `fastgan.penalty`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import relu

from fastgan.errors import FastganError

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

LOG_RATIO_LIMIT = 40.0
"""Exponentials in f-divergences go on as straight lines above exp(LOG_RATIO_LIMIT) = 2.4e17: they stay finite."""


@dataclass(frozen=True)
class Loss:
    """One adversarial loss.

    name:      its key in LOSSES
    critic:    (real_logits, fake_logits) -> scalar that the critic minimises
    generator: (real_logits, fake_logits) -> scalar that the generator minimises
    generator_compares: the generator's loss reads real_logits; otherwise any tensor may stand for them
    """

    name: str
    critic: LossFunction
    generator: LossFunction
    generator_compares: bool = False


def _wide(logits: Tensor) -> Tensor:
    """Half-precision logits in fp32, others as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact in float64, too: by default PyTorch's is x above 20, which is 2e-9 off."""
    return functional.softplus(x, threshold=LOG_RATIO_LIMIT)


def _logistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-E log sigmoid(D(x)) - E log(1 - sigmoid(D(x~))): binary cross-entropy.

    Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1.
    """
    return softplus(-_wide(real)).mean() + softplus(_wide(fake)).mean()


def _non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log sigmoid(D(x~)). Goodfellow et al. 2014, section 3."""
    return softplus(-_wide(fake)).mean()


def _minimax_generator(real: Tensor, fake: Tensor) -> Tensor:
    """E log(1 - sigmoid(D(x~))): saturates where the critic is sure. Goodfellow et al. 2014, algorithm 1."""
    return -softplus(_wide(fake)).mean()


def _least_squares_critic(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 E (D(x) - 1)^2 + 1/2 E D(x~)^2. Mao et al. 2017 (arXiv:1611.04076), eq. 9 (targets 1 and 0)."""
    return (_wide(real) - 1).square().mean() / 2 + _wide(fake).square().mean() / 2


def _least_squares_generator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 E (D(x~) - 1)^2. Mao et al. 2017, eq. 9."""
    return (_wide(fake) - 1).square().mean() / 2


def _hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(x~)). Lim & Ye 2017 (arXiv:1705.02894)."""
    return relu(1 - _wide(real)).mean() + relu(1 + _wide(fake)).mean()


def _negative_mean_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E D(x~). Lim & Ye 2017; Arjovsky et al. 2017 (arXiv:1701.07875), algorithm 1."""
    return -_wide(fake).mean()


def _wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E D(x~) - E D(x). Arjovsky et al. 2017, eq. 2, for a critic that other means keep Lipschitz."""
    return _wide(fake).mean() - _wide(real).mean()


def _kl_conjugate(t: Tensor) -> Tensor:
    """f*(t) = exp(t - 1), the convex conjugate of f(u) = u log u, per element.

    Above t = 1 + L with L = LOG_RATIO_LIMIT it goes on as a straight line. That is exactly the conjugate of f
    on ratios u <= exp(L), so that the bound stays a bound and neither value nor gradient overflows.
    """
    return _bounded_exp(_wide(t) - 1)


def _bounded_exp(v: Tensor) -> Tensor:
    """exp(v), and above LOG_RATIO_LIMIT its tangent there."""
    return torch.exp(v.clamp(max=LOG_RATIO_LIMIT)) + math.exp(LOG_RATIO_LIMIT) * relu(v - LOG_RATIO_LIMIT)


def _kl_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-(E D(x) - E f*(D(x~))), f*(t) = exp(t - 1): minus a lower bound on KL(p_real | p_fake).

    Nowozin et al. 2016 (arXiv:1606.00709), eq. 4 to 6 with the KL row of their tables, whose output
    activation is the identity. At the optimum D = 1 + log(p_real / p_fake).
    """
    return _kl_conjugate(fake).mean() - _wide(real).mean()


def _kl_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E f*(D(x~)): the part of the same bound that depends on the generator. Nowozin et al. 2016, eq. 6."""
    return -_kl_conjugate(fake).mean()


# The rows below are of Nowozin et al. 2016 too (tables 2 and 6). The critic minimises -(E g(D(x)) - E f*(g(D(x~)))),
# minus a lower bound on the divergence, with the output activation g that keeps g(D) where f* is finite; the generator
# minimises -E f*(g(D(x~))), as there. p is the density of the reals, q that of the fakes.


def _reverse_kl_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E exp(-D(x)) + E D(x~) - 1: g(v) = -exp(-v), f*(t) = -1 - log(-t). At the optimum D = log(p/q)."""
    return _bounded_exp(-_wide(real)).mean() + _wide(fake).mean() - 1


def _reverse_kl_generator(real: Tensor, fake: Tensor) -> Tensor:
    """1 - E D(x~)."""
    return 1 - _wide(fake).mean()


def _jensen_shannon_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-D(x)) + E softplus(D(x~)) - 2 log 2: g(v) = log 2 - softplus(-v), f*(t) = -log(2 - exp(t)).

    The binary cross-entropy of Goodfellow et al. 2014, such that its least value is -2 JS(p, q).
    """
    return _logistic_critic(real, fake) - 2 * math.log(2)


def _jensen_shannon_generator(real: Tensor, fake: Tensor) -> Tensor:
    """log 2 - E softplus(D(x~)): saturates, as minimax does."""
    return math.log(2) + _minimax_generator(real, fake)


def _squared_hellinger_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E exp(-D(x)) + E exp(D(x~)) - 2: g(v) = 1 - exp(-v), f*(t) = t / (1 - t). At the optimum D = log(p/q) / 2."""
    return _bounded_exp(-_wide(real)).mean() + _bounded_exp(_wide(fake)).mean() - 2


def _squared_hellinger_generator(real: Tensor, fake: Tensor) -> Tensor:
    """1 - E exp(D(x~))."""
    return 1 - _bounded_exp(_wide(fake)).mean()


def _pearson_conjugate(t: Tensor) -> Tensor:
    """f*(t) = t^2/4 + t of f(u) = (u - 1)^2, and -1 below t = -2, where the best u >= 0 is 0."""
    t = _wide(t).clamp(min=-2)
    return t.square() / 4 + t


def _pearson_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E f*(D(x~)) - E D(x): g is the identity. At the optimum D = 2 (p/q - 1)."""
    return _pearson_conjugate(fake).mean() - _wide(real).mean()


def _pearson_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E f*(D(x~))."""
    return -_pearson_conjugate(fake).mean()


def _relativistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(D(x~) - D(x)) over pairs of a real and a generated sample; logits of equal shape.

    Jolicoeur-Martineau 2018 (arXiv:1807.00734), RpGAN; with R1 and R2 the loss of R3GAN (arXiv:2501.05441,
    eq. 2).
    """
    return softplus(-_paired_difference(real, fake)).mean()


def _relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(D(x) - D(x~)) over the same pairs; logits of equal shape. arXiv:2501.05441, eq. 2."""
    return softplus(_paired_difference(real, fake)).mean()


def _paired_difference(real: Tensor, fake: Tensor) -> Tensor:
    """D(x) - D(x~) pair by pair."""
    if real.shape != fake.shape:  # [N] against [N, 1] would broadcast to all N x N pairs
        raise FastganError(
            "the relativistic loss pairs real and fake logits, got shapes "
            f"{list(real.shape)} and {list(fake.shape)}; give equally many real and fake samples"
        )
    return _wide(real) - _wide(fake)


NON_SATURATING = Loss("non_saturating", _logistic_critic, _non_saturating_generator)
MINIMAX = Loss("minimax", _logistic_critic, _minimax_generator)
LEAST_SQUARES = Loss("least_squares", _least_squares_critic, _least_squares_generator)
HINGE = Loss("hinge", _hinge_critic, _negative_mean_generator)
WASSERSTEIN = Loss("wasserstein", _wasserstein_critic, _negative_mean_generator)
KL = Loss("kl", _kl_critic, _kl_generator)
REVERSE_KL = Loss("reverse_kl", _reverse_kl_critic, _reverse_kl_generator)
JENSEN_SHANNON = Loss("jensen_shannon", _jensen_shannon_critic, _jensen_shannon_generator)
SQUARED_HELLINGER = Loss("squared_hellinger", _squared_hellinger_critic, _squared_hellinger_generator)
PEARSON = Loss("pearson", _pearson_critic, _pearson_generator)
RELATIVISTIC = Loss("relativistic", _relativistic_critic, _relativistic_generator, generator_compares=True)

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        NON_SATURATING,
        MINIMAX,
        LEAST_SQUARES,
        HINGE,
        WASSERSTEIN,
        KL,
        RELATIVISTIC,
        REVERSE_KL,
        JENSEN_SHANNON,
        SQUARED_HELLINGER,
        PEARSON,
    )
}
