"""The unconditional GAN (Goodfellow et al. 2014, arXiv:1406.2661) with the losses and penalties in use today.

Players: a generator G(z) and a critic D(x). A step is that of fastgan.gans.play on reals x and fakes G(z).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.errors import FastganError, suggest
from fastgan.gans.play import Compared, Game, Play
from fastgan.models.flow import RealNVP, WithPrior
from fastgan.models.msg_gan import MultiScaleGenerator, halvings

PRIORS = ("none", "flow")


@dataclass(frozen=True)
class UnconditionalGAN(Game):
    """Options of the unconditional GAN: those of every game with one critic.

    prior:        "none": the generator gets the latents as they are drawn; "flow": what a normalising flow makes of
                  them, which is a part of the generator and is trained with it (fastgan.models.flow)
    simultaneous: the generator learns from the critic as it was before the step's last update of it
    """

    simultaneous: bool = False
    prior: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior not in PRIORS:
            raise FastganError(f"prior {self.prior!r} is unknown{suggest(self.prior, PRIORS)}")
        if self.prior == "flow" and self.latent < 2:
            raise FastganError(f"prior 'flow' needs a latent of 2 or more, got {self.latent}")
        if getattr(self.networks, "multi_scale", False) and (self.simultaneous or self.augment.kind != "none"):
            what = "simultaneous" if self.simultaneous else "augment"
            raise FastganError(f"multi_scale networks cannot be trained with {what}; leave one of them out")

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        generator = self.networks.generator(image, self.latent)
        return {
            "generator": WithPrior(RealNVP(self.latent), generator) if self.prior == "flow" else generator,
            "critic": self.networks.critic(image),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars).turns()


class _Play(Play):
    def compare(self, batch: Batch, draw: Draw) -> Compared:
        latents, generator = self.options.latents(draw).to(batch.images.dtype), self.players["generator"]
        if isinstance(generator, WithPrior) and isinstance(generator.generator, MultiScaleGenerator):
            latents, generator = generator.flow(latents), generator.generator
        if isinstance(generator, MultiScaleGenerator):
            fake = generator.scales(latents)
            return Compared(halvings(batch.images, len(fake)), fake)
        return Compared(batch.images, generator(latents))
