"""One critic step, real and fake, with gradient penalties: by fastgan's sweep and as people write it.

Every function takes a critic and two batches and returns `step()`, which leaves the gradients of the relativistic loss
(or Wasserstein's, for WGAN-GP) and of the penalties in `.grad`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor, nn

from benchmarks import memory
from fastgan.contract import ImageShape
from fastgan.losses import RELATIVISTIC, WASSERSTEIN
from fastgan.models import DCGAN, R3GAN
from fastgan.penalty import critic_backward

PENALTIES: dict[str, dict[str, float]] = {
    "R1 + R2": {"r1": 2.0, "r2": 2.0},
    "R1": {"r1": 2.0},
    "WGAN-GP": {"wgan_gp": 10.0},
}
EPSILON = 0.3

Step = Callable[[], object]


def critic_of(name: str) -> nn.Module:
    """The critics at 64x64. R3GAN's has an eighth of the published widths, for the sake of CPUs."""
    torch.manual_seed(0)
    if name == "DCGAN-64":
        critic = DCGAN(critic_norm="none").critic(ImageShape(3, 64))
    else:
        critic = R3GAN(widths=(96, 96, 96, 96, 48), blocks=(2,) * 5).critic(ImageShape(3, 64))
        for parameter in critic.parameters():  # at first the last convolution of a block is zero
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return critic


def batches(count: int, device: str, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    real, fake = (torch.randn(count, 3, 64, 64, device=device).to(memory_format=memory_format) for _ in range(2))
    return real, fake


def loss_of(penalties: dict[str, float]) -> Callable[[Tensor, Tensor], Tensor]:
    return WASSERSTEIN.critic if "wgan_gp" in penalties else RELATIVISTIC.critic


def cleared(critic: nn.Module) -> None:
    for parameter in critic.parameters():
        parameter.grad = None


def sweep(critic: nn.Module, real: Tensor, fake: Tensor, penalties: dict[str, float]) -> Step:
    epsilon = torch.full((len(real),), EPSILON, device=real.device) if "wgan_gp" in penalties else None

    def step() -> None:
        cleared(critic)
        critic_backward(
            critic, real, fake, loss_of(penalties), epsilon=epsilon, method="sweep", **penalties  # type: ignore[arg-type]
        )  # fmt: skip

    return step


def plain(critic: nn.Module, real: Tensor, fake: Tensor, penalties: dict[str, float]) -> Step:
    """The loss alone."""

    def step() -> None:
        cleared(critic)
        loss_of(penalties)(critic(real), critic(fake)).backward()  # type: ignore[no-untyped-call]

    return step


def double_backward(critic: nn.Module, real: Tensor, fake: Tensor, penalties: dict[str, float]) -> Step:
    """In eager mode, one backward pass over loss and penalties."""

    def step() -> None:
        cleared(critic)
        total(critic, real, fake, penalties).backward()  # type: ignore[no-untyped-call]

    return step


def compiled_double_backward(critic: nn.Module, real: Tensor, fake: Tensor, penalties: dict[str, float]) -> Step:
    """The whole step as one compiled graph."""
    torch._dynamo.config.trace_autograd_ops = True  # type: ignore[attr-defined]
    parameters = list(critic.parameters())

    @torch.compile(fullgraph=True, dynamic=False)
    def gradients(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(total(critic, real, fake, penalties), parameters)

    def step() -> None:
        for parameter, gradient in zip(parameters, gradients(real, fake), strict=True):
            parameter.grad = gradient

    return step


def total(critic: nn.Module, real: Tensor, fake: Tensor, penalties: dict[str, float]) -> Tensor:
    """Loss and weighted penalties; the logits of a batch serve its loss and its penalty."""
    terms = []
    logits = []
    for x, name in ((real, "r1"), (fake, "r2")):
        if name in penalties:
            x = x.detach().requires_grad_()
            logits.append(critic(x))
            terms.append(penalties[name] / 2 * squares(logits[-1], x).mean())
        else:
            logits.append(critic(x))
    if "wgan_gp" in penalties:
        between = (EPSILON * real + (1 - EPSILON) * fake).detach().requires_grad_()
        norms = squares(critic(between), between).sqrt()
        terms.append(penalties["wgan_gp"] * (norms - 1).square().mean())
    return sum(terms, start=loss_of(penalties)(*logits))


def squares(logits: Tensor, x: Tensor) -> Tensor:
    """|d D(x_n) / d x_n|^2, [N]."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


CANDIDATES: dict[str, Callable[[nn.Module, Tensor, Tensor, dict[str, float]], Step]] = {
    "sweep": sweep,
    "double backward": double_backward,
    "double backward, compiled": compiled_double_backward,
    "no penalty": plain,
}


def main(name: str, penalty: str, candidate: str, count: str, device: str) -> None:
    """Print the bytes by which memory rises within a step of one candidate."""
    critic = critic_of(name).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    real, fake = batches(int(count), device, torch.channels_last)
    print(memory.rise(CANDIDATES[candidate](critic, real, fake, PENALTIES[penalty]), device))


if __name__ == "__main__":
    main(*sys.argv[1:])
