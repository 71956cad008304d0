"""Paired translation, pix2pix (Isola et al. 2017, arXiv:1611.07004): an image y for each source x, near its partner.

Players: a generator G(x, noise) and a critic D(y, x) that sees source and image together and scores patches. A step is

    critic     adds the gradient of  loss.critic(D(y, x), D(G(x), x)) + R1  to the critic
    generator  adds the gradient of  adversarial * loss.generator(D(G(x), x)) + l1 * |y - G(x)| + features * matching
               to the generator, with G(x) and its graph from the critic's turn (eq. 4)

The paper halves the critic's loss, which changes nothing with Adam. Its noise is dropout, on in training; here off in
use, so that a picture is always translated alike. The sources are the data's, or made from the images themselves
(fastgan.gans.sources). `features` weighs the distance of the critic's own activations ("feature matching", Wang et al.
2018, arXiv:1711.11585). With `residual` the network makes what the source lacks: G(x) = x + 2 network(x), for sources
that look like the images, such as noisy ones or their brightness; a source of one channel counts for all colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from fastgan.augment import Augment, Augmenter
from fastgan.contract import Batch, Draw, ImageShape, PairCritic, Translator, Turn
from fastgan.dist import sum_over_ranks
from fastgan.errors import FastganError, suggest
from fastgan.gans.play import augment_statistics, check_augment, frozen, seen_together
from fastgan.gans.sources import channels_of, check_source, source_of
from fastgan.losses import LOSSES
from fastgan.models import PatchCritic, UNet
from fastgan.models.patch_critic import matched_features
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, lowest

WEIGHTS = ("l1", "adversarial", "features", "r1")


@dataclass(frozen=True)
class Translation:
    """Options of paired translation.

    generator, critic: the two networks (fastgan.models)
    source:      "data" (pairs), or made from the images: "edges", "noise", "gray"
    noise_level: deviation of the noise of source="noise", where images lie in [-1, 1]
    loss:        a key of fastgan.losses.LOSSES
    l1, adversarial, features: weights of the generator's terms; numbers or schedules
    r1:          gamma in gamma/2 * mean |grad D|^2 at real pairs, as the critic sees them
    conditional: the critic sees the source, too
    residual:    the network's output is added to the source
    augment:     augmentation of what the critic sees, image and source alike (fastgan.augment)
    """

    generator: Translator = field(default_factory=UNet)
    critic: PairCritic = field(default_factory=PatchCritic)
    source: str = "data"
    noise_level: float = 0.5
    loss: str = "non_saturating"
    l1: Scheduled = 100.0
    adversarial: Scheduled = 1.0
    features: Scheduled = 0.0
    r1: Scheduled = 0.0
    conditional: bool = True
    residual: bool = False
    augment: Augment = field(default_factory=Augment)

    averaged = ("generator",)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise FastganError(f"loss {self.loss!r} is unknown{suggest(self.loss, LOSSES)}")
        check_source(self.source)
        check_augment(self.augment, self.loss)
        for name in (*WEIGHTS, "noise_level"):
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def schedules(self) -> dict[str, Scheduled]:
        return {name: getattr(self, name) for name in WEIGHTS} | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        channels = channels_of(self.source, image)
        if self.residual and channels not in (1, image.channels):
            raise FastganError(
                f"residual=true adds to the sources, which have {channels} channels where the images have "
                f"{image.channels}; set system.residual=false"
            )
        return {
            "generator": self.generator.translator(image, channels),
            "critic": self.critic.critic(image, channels if self.conditional else 0),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, players["generator"], players["critic"], scalars)
        return (
            Turn("critic", ("critic",), play.critic_turn),
            Turn("generator", ("generator",), play.generator_turn, fresh=False),
        )

    def sources(self, batch: Batch, draw: Draw) -> Tensor:
        """What is translated, [N, C', S, S]."""
        return source_of(self.source, batch, draw, self.noise_level)

    def translate(self, players: Mapping[str, nn.Module], images: Tensor, *, back: bool = False) -> Tensor:
        if back:
            raise FastganError("pix2pix has learned one direction; train another run with data.direction=BtoA")
        translated = self.made(players["generator"], images)
        return translated.clamp(-1, 1) if self.residual else translated

    def made(self, generator: nn.Module, source: Tensor, *noise: Tensor) -> Tensor:
        """G(x), [N, C, S, S]: in (-1, 1), or with `residual` a little beyond."""
        output: Tensor = generator(source, *noise).to(source.dtype)
        return source + 2 * output if self.residual else output

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.translate(players, self.sources(batch, draw))

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        source = self.sources(batch, draw)
        return source, self.translate(players, source), batch.images


class _Play:
    """The turns of one game: the players, the weights, and what the second turn takes over from the first."""

    def __init__(
        self, options: Translation, generator: nn.Module, critic: nn.Module, scalars: Mapping[str, Tensor]
    ) -> None:
        self.options, self.generator, self.critic, self.scalars = options, generator, critic, scalars
        self.loss, self.augment = LOSSES[options.loss], Augmenter(options.augment, scalars, sum_over_ranks)
        self.kept: tuple[Tensor, Tensor] | None = None  # source, fake with its graph

    def _scored(self, images: Tensor, source: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """What the critic gets."""
        return seen_together(self.augment, (images, source) if self.options.conditional else (images,), draw)

    def critic_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        source = self.options.sources(batch, draw)
        fake = self.options.made(self.generator, source, *self._noise(batch, draw))
        self.kept = source, fake
        penalised = self.options.r1 != 0.0
        result = critic_backward(
            self.critic,
            self._scored(batch.images, source, draw),
            self._scored(fake.detach(), source, draw),
            self.loss.critic,
            r1=self.scalars["r1"] if penalised else 0.0,
        )
        self.augment.observe(result.real_logits)
        return {
            "loss": result.loss,
            "real_logits": result.real_logits.mean(),
            "fake_logits": result.fake_logits.mean(),
            **({"r1": result.r1} if result.r1 is not None else {}),
            **augment_statistics(self.augment),
        }

    def _noise(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """The dropout's numbers, where the network takes some."""
        images = batch.images
        shape = ImageShape(images.shape[1], images.shape[2])
        numbers = self.options.generator.noise_numbers(shape)
        return (draw.uniform(numbers).to(images.dtype),) if numbers else ()

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.kept is not None, "the generator's turn comes after the critic's"
        (source, fake), self.kept = self.kept, None
        with frozen(self.critic):
            fake_logits = self.critic(*self._scored(fake, source, draw))
            real_logits = batch.images.new_zeros(())
            if self.loss.generator_compares:
                with torch.no_grad():
                    real_logits = self.critic(*self._scored(batch.images, source, draw))
            terms = {
                "adversarial": self.loss.generator(real_logits, fake_logits),
                "l1": l1_loss(fake, batch.images),
            }
            if self.options.features != 0.0:
                condition = source if self.options.conditional else None
                terms["features"] = matched_features(self.critic, fake, batch.images, condition)
            total = torch.stack([self.scalars[name].to(term.dtype) * term for name, term in terms.items()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}
