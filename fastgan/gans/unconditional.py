"""The unconditional GAN (Goodfellow et al. 2014, arXiv:1406.2661) with the losses and penalties in use today.

Players: a generator G(z) and a critic D(x). A step is that of fastgan.gans.play on reals x and fakes G(z).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.gans.play import Compared, Game, Play


@dataclass(frozen=True)
class UnconditionalGAN(Game):
    """Options of the unconditional GAN: those of every game with one critic.

    simultaneous: the generator learns from the critic as it was before the step's last update of it
    """

    simultaneous: bool = False

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        return {
            "generator": self.networks.generator(image, self.latent),
            "critic": self.networks.critic(image),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars).turns()


class _Play(Play):
    def compare(self, batch: Batch, draw: Draw) -> Compared:
        latents = self.options.latents(draw).to(batch.images.dtype)
        return Compared(batch.images, self.players["generator"](latents))
