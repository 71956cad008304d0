"""A normalising flow over latents: RealNVP (Dinh et al. 2017, arXiv:1605.08803) as a generator's prior.

A coupling layer leaves half of the numbers as they are, and scales and shifts the others by functions of them:

    x_a = z_a        x_b = z_b * exp(s(z_a)) + t(z_a)        log |det dx/dz| = sum s        (equations 4, 5 and 6)

It is inverted in closed form. The halves swap from layer to layer. s is bounded to (-2, 2) by a tanh. The last layers
of s and t start at zero, so that the flow starts as the identity: the normal prior of the same generator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LAYERS, HIDDEN = 4, 64


class Coupling(nn.Module):
    """z [N, length] -> (x [N, length], log |det dx/dz| [N]). last: the second half is what it changes."""

    def __init__(self, length: int, hidden: int, *, last: bool) -> None:
        super().__init__()
        self.kept, self.last = length // 2 if last else length - length // 2, last
        changed = length - self.kept
        self.net = nn.Sequential(
            nn.Linear(self.kept, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, 2 * changed),
        )  # fmt: skip
        for p in self.net[-1].parameters():
            nn.init.zeros_(p)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._parts(z)
        s, t = self._scale_and_shift(kept)
        return self._whole(kept, changed * torch.exp(s) + t), s.sum(1)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z, log |det dz/dx|)."""
        kept, changed = self._parts(x)
        s, t = self._scale_and_shift(kept)
        return self._whole(kept, (changed - t) * torch.exp(-s)), -s.sum(1)

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(kept).chunk(2, 1)
        return 2 * torch.tanh(s / 2), t

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (z[:, : self.kept], z[:, self.kept :]) if self.last else (z[:, -self.kept :], z[:, : -self.kept])

    def _whole(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([kept, changed] if self.last else [changed, kept], 1)


class RealNVP(nn.Module):
    """z [N, length] -> x [N, length], invertible. length: 2 or more."""

    def __init__(self, length: int, layers: int = LAYERS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(length, hidden, last=i % 2 == 0) for i in range(layers))

    def forward(self, z: Tensor) -> Tensor:
        return self.with_log_det(z)[0]

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(x, log |det dx/dz| [N])."""
        total = z.new_zeros(len(z))
        for layer in self.layers:
            z, log_det = layer(z)
            total = total + log_det
        return z, total

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z, log |det dz/dx| [N])."""
        total = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            x, log_det = layer.inverse(x)  # type: ignore[operator]
            total = total + log_det
        return x, total

    def log_density(self, x: Tensor) -> Tensor:
        """[N], log p(x) where z is standard normal."""
        z, log_det = self.inverse(x)
        return log_det - (z.square() + math.log(2 * math.pi)).sum(1) / 2


class WithPrior(nn.Module):
    """z [N, latent] -> generator(flow(z)): a generator with a prior of its own, which is trained with it."""

    def __init__(self, flow: RealNVP, generator: nn.Module) -> None:
        super().__init__()
        self.flow, self.generator = flow, generator

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.generator(self.flow(z))
        return images
