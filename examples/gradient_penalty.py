"""A GAN on a ring of eight Gaussians with R1 and R2, in plain PyTorch: the critic's step is one call of fastgan.

    python examples/gradient_penalty.py [STEPS]

Prints the losses, the penalties, how they were computed, and how the samples lie on the ring at the end.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn

from fastgan.losses import RELATIVISTIC
from fastgan.penalty import critic_backward

MODES, RADIUS, SPREAD = 8, 2.0, 0.2
BATCH, LATENT, WIDTH = 256, 8, 128
GAMMA = 0.2  # of R1 and of R2: GAMMA / 2 times the mean square of the critic's slope


def centres() -> Tensor:
    angles = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)


def ring(count: int) -> Tensor:
    """Samples of the data, [count, 2]."""
    return centres()[torch.randint(MODES, (count,))] + SPREAD * torch.randn(count, 2)


def network(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (inputs, WIDTH, WIDTH):
        layers += [nn.Linear(width, WIDTH), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


def main(steps: int) -> None:
    torch.manual_seed(0)
    generator, critic = network(LATENT, 2), network(2, 1)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
    for step in range(1, steps + 1):
        real, fake = ring(BATCH), generator(torch.randn(BATCH, LATENT))

        of_critic.zero_grad()
        result = critic_backward(critic, real, fake, RELATIVISTIC.critic, r1=GAMMA, r2=GAMMA)
        of_critic.step()

        of_generator.zero_grad()
        critic.requires_grad_(False)
        loss = RELATIVISTIC.generator(critic(real), critic(fake))
        loss.backward()
        critic.requires_grad_(True)
        of_generator.step()

        if step % max(steps // 10, 1) == 0:
            print(
                f"step {step:5}  critic {result.loss.item():.4f}  generator {loss.item():.4f}  "
                f"r1 {result.r1.item():.4f}  r2 {result.r2.item():.4f}  {result.method}"
            )

    with torch.no_grad():
        nearest = torch.cdist(generator(torch.randn(2000, LATENT)), centres()).min(1)
    near = nearest.values < 3 * SPREAD
    reached = nearest.indices[near].unique().numel()
    print(f"{near.float().mean():.0%} of the samples are at one of the Gaussians, {reached} of {MODES} are reached")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
