"""Adversarially learned inference: ALI (Dumoulin et al. 2017, arXiv:1606.00704), BiGAN (Donahue et al. 2017,
arXiv:1605.09782).

Players: a generator G(z), an encoder E(x) and a critic D(x, z) of pairs. With reals x and latents z a step is

    critic     minimises  loss.critic(D(x, E(x)), D(G(z), z)) + penalties
    generator  generator and encoder together minimise the same game from the other side: D is to call (G(z), z) real,
               and (x, E(x)) fake (algorithm 1 of ALI, equation 4 of BiGAN)

At the optimum the pairs have one distribution, so that E inverts G. In ALI the encoder is stochastic, E(x) = mu(x) +
sigma(x) * noise; in BiGAN it is a function. R1, R2 and WGAN-GP are on the gradient by x and z together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.errors import FastganError
from fastgan.gans.play import Compared, Game, Play, at_least_one, wide

BOTH_SIDES = ("non_saturating", "hinge", "wasserstein", "relativistic")
"""Losses whose generator's side, with the logits' signs turned around, is what the encoder minimises."""


@dataclass(frozen=True)
class InferenceGAN(Game):
    """Options of ALI and BiGAN, besides those of every game with one critic. loss: one of BOTH_SIDES.

    stochastic:  the encoder gives a mean and a deviation (ALI); else a point (BiGAN)
    joint_width: units of the critic's layers in which the image and the latent meet
    """

    stochastic: bool = False
    joint_width: int = 256

    averaged = ("generator", "encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "joint_width")
        if self.loss not in BOTH_SIDES:
            raise FastganError(
                f"loss {self.loss!r} is not one that an encoder can play from the other side; "
                f"use one of {', '.join(BOTH_SIDES)}"
            )

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        return {
            "generator": self.networks.generator(image, self.latent),
            "encoder": self.networks.critic(image, self.latent * (2 if self.stochastic else 1)),
            "critic": PairCritic(self.networks.critic(image, self.joint_width), self.latent, self.joint_width),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars).turns()

    def encode(self, players: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        """The mean, where the encoder is stochastic."""
        codes: Tensor = players["encoder"](images)
        return codes.view(len(images), -1)[:, : self.latent]

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """An image, its reconstruction, and a sample."""
        reconstruction = self.sample(players, self.encode(players, batch.images))
        return (batch.images, reconstruction, self.generate(players, batch, draw))


class _Play(Play):
    movers = ("generator", "encoder")
    options: InferenceGAN

    def compare(self, batch: Batch, draw: Draw) -> Compared:
        latents = self.options.latents(draw).to(batch.images.dtype)
        codes = self.players["encoder"](batch.images).view(len(latents), -1).to(latents.dtype)
        if self.options.stochastic:
            mean, deviation = codes.chunk(2, 1)
            codes = mean + deviation.exp() * draw.normal(self.options.latent).to(codes.dtype)
        return Compared((batch.images, codes), (self.players["generator"](latents), latents))

    def generator_loss(self, compared: Compared, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        real, fake = (wide(self.score(self.seen(side, draw), None)) for side in (compared.real, compared.fake))
        loss = self.loss.generator(real, fake)
        if self.loss.generator_compares:  # it falls with every D(x, E(x)), too
            return loss, {}
        return loss, {"encoder_loss": self.loss.generator(-fake, -real)}


class PairCritic(nn.Module):
    """(x [N, C, S, S], z [N, latent]) -> logits [N]: features of the image and the latent, then layers of both."""

    def __init__(self, network: nn.Module, latent: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.latent = nn.Linear(latent, width)
        self.joint = nn.Linear(2 * width, width)
        self.to_logit = nn.Linear(width, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        image = self.network(x).view(len(z), -1)
        both = leaky_relu(torch.cat([image, self.latent(z)], 1), 0.2)
        logits: Tensor = self.to_logit(leaky_relu(self.joint(both), 0.2))
        return logits.flatten()
