"""A mixture of generators: MGAN (Hoang et al. 2018, "MGAN: Training generative adversarial nets with multiple
generators", ICLR).

Players: K generators G_k(z), chosen with equal chance, that share all but their first layer, and a critic that returns
a logit D(x) and K class logits C(x), by which it tells whose image x is. With the cross-entropy H a step is

    critic     minimises  loss.critic(D(x), D(G_k(z))) + penalties + H(C(G_k(z)), k)
    generator  minimises  loss.generator(D(x), D(G_k(z))) + diversity * H(C(G_k(z)), k)

(equations 2 and 8 to 10): generators that can be told apart divide the modes. The layer of its own is an affine map of
z, in front of the network that is shared. The log has the share of each head: the mean of softmax(C(x)) over
reals, which is the part of the data that it is responsible for.

A latent is z with a number in [0, 1) behind it that says which head: floor(K times it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.errors import FastganError
from fastgan.gans.classifying import ClassifyingPlay
from fastgan.gans.play import Compared, Game, at_least_one


@dataclass(frozen=True)
class MixtureGAN(Game):
    """Options of the mixture of generators, besides those of every game with one critic.

    heads:     K
    diversity: weight of the classifier in the generators' objective (beta in the paper)
    """

    heads: int = 8
    diversity: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "heads")
        if not self.diversity >= 0:
            raise FastganError(f"diversity must be 0 or more, got {self.diversity}")

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        return {
            "generator": MixtureGenerator(self.networks.generator(image, self.latent), self.latent, self.heads),
            "critic": self.networks.critic(image, 1 + self.heads),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars, self.diversity).turns()

    def latents(self, draw: Draw) -> Tensor:
        """[N, latent + 1]: z, and which head."""
        return torch.cat([super().latents(draw), draw.uniform(1)], 1)

    def way(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """The head is that of `a` all the way."""
        return torch.cat([super().way(a[:-1], b[:-1], t), a[-1:].expand(len(t), 1)], 1)

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = players["generator"](latents[:, :-1], self.heads_of(latents))
        return images

    def heads_of(self, latents: Tensor) -> Tensor:
        """[N] int64."""
        return (latents[:, -1].double() * self.heads).long().clamp(max=self.heads - 1)

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """Each head in turn."""
        z = super().latents(draw).to(batch.images.dtype)
        images: Tensor = players["generator"](z, batch.index % self.heads)
        return (images,)


class _Play(ClassifyingPlay):
    options: MixtureGAN

    def compare(self, batch: Batch, draw: Draw) -> Compared:
        latents = self.options.latents(draw).to(batch.images.dtype)
        heads = self.options.heads_of(latents)
        return Compared(batch.images, self.players["generator"](latents[:, :-1], heads), fake_classes=heads)

    def observe(self, at_real: Tensor, at_fake: Tensor, compared: Compared) -> dict[str, Tensor]:
        shares = at_real[:, 1:].softmax(1).mean(0).unbind()
        found = super().observe(at_real, at_fake, compared)
        return found | {f"share_{number}": share for number, share in enumerate(shares)}


class MixtureGenerator(nn.Module):
    """(z [N, latent], heads [N] int64) -> images: an affine map of z per head, then the shared network.

    Every head starts near the identity, each moved in a direction of its own.
    """

    def __init__(self, network: nn.Module, latent: int, heads: int) -> None:
        super().__init__()
        noise = torch.randn(heads, latent, latent) / math.sqrt(latent)
        self.weight = nn.Parameter(torch.eye(latent) + 0.5 * noise)
        self.bias = nn.Parameter(torch.randn(heads, latent))
        self.network = network

    def forward(self, z: Tensor, heads: Tensor) -> Tensor:
        # All heads of every z, then one of them: one matrix product, K times as long, and no gathered matrices.
        mapped = torch.einsum("nl,kml->nkm", z, self.weight) + self.bias
        own = mapped.gather(1, heads[:, None, None].expand(-1, 1, mapped.shape[2]))[:, 0]
        images: Tensor = self.network(own)
        return images
