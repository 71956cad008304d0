"""Unpaired translation, CycleGAN (Zhu et al. 2017, arXiv:1703.10593): two domains, and the way back as the teacher.

Players: generators G: X -> Y ("generator") and F: Y -> X ("back"), critics D_Y ("critic") and D_X ("critic_back").
X are the data's sources, Y its images; they need not be aligned. A step is

    critics     add the gradients of  loss.critic(D_Y(y), D_Y(old G(x)))  and  loss.critic(D_X(x), D_X(old F(y)))
    generators  add the gradients of  loss.generator(D_Y(G(x))) + loss.generator(D_X(F(y)))          adversarial
                  + cycle (|F(G(x)) - x| + |G(F(y)) - y|)                                            eq. 2
                  + cycle identity (|G(y) - y| + |F(x) - x|)                                         section 5.2

"old" images come half of the time from a buffer of those made before (fastgan.gans.image_buffer). The critics play
first, and the generators go on from G(x) and F(y) of that turn. Pictures: x, G(x), F(G(x)); y, F(y), G(F(y)).
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
from fastgan.gans.image_buffer import ImageBuffer
from fastgan.gans.play import augment_statistics, check_augment, frozen
from fastgan.gans.sources import channels_of
from fastgan.losses import LOSSES
from fastgan.models import PatchCritic, ResNetTranslator
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, highest, lowest

SOURCES = ("data", "inverted")
WEIGHTS = ("cycle", "identity", "adversarial")


@dataclass(frozen=True)
class CycleGAN:
    """Options of unpaired translation.

    generator, critic: the networks of both directions (fastgan.models)
    source:      "data": another set of images (data.pairs); "inverted": the images' negatives, a second domain where
                 there is only one set
    loss:        a key of fastgan.losses.LOSSES
    cycle, identity, adversarial: weights; identity as a fraction of cycle; numbers or schedules
    buffer:      images made earlier that each critic may be shown again
    augment:     augmentation of what the critics see (fastgan.augment)
    """

    generator: Translator = field(default_factory=ResNetTranslator)
    critic: PairCritic = field(default_factory=lambda: PatchCritic(norm="instance"))
    source: str = "data"
    loss: str = "least_squares"
    cycle: Scheduled = 10.0
    identity: Scheduled = 0.5
    adversarial: Scheduled = 1.0
    buffer: int = 50
    augment: Augment = field(default_factory=Augment)

    averaged = ("generator", "back")

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("source", SOURCES)):
            if getattr(self, name) not in known:
                raise FastganError(f"{name} {getattr(self, name)!r} is unknown{suggest(getattr(self, name), known)}")
        for name in WEIGHTS:
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        check_augment(self.augment, self.loss)
        if self.buffer < 0:
            raise FastganError(f"buffer must be 0 or more images, got {self.buffer}")

    def schedules(self) -> dict[str, Scheduled]:
        return {name: getattr(self, name) for name in WEIGHTS} | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        channels = image.channels if self.source == "inverted" else channels_of("data", image)
        if highest(self.identity) > 0 and channels != image.channels:
            raise FastganError(
                f"the two domains have {channels} and {image.channels} channels, so that no identity can be asked for; "
                "set system.identity=0"
            )
        other = ImageShape(channels, image.size)
        return {
            "generator": self.generator.translator(image, channels),
            "back": self.generator.translator(other, image.channels),
            "critic": Critic(self.critic.critic(image), self.buffer, image),
            "critic_back": Critic(self.critic.critic(other), self.buffer, other),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, players, scalars)
        return (
            Turn("critics", ("critic", "critic_back"), play.critics_turn),
            Turn("generators", ("generator", "back"), play.generators_turn, fresh=False),
        )

    def sources(self, batch: Batch, draw: Draw) -> Tensor:
        """Images of domain X, [N, C', S, S]."""
        if self.source == "inverted":  # nothing below compares an image with its own negative
            return -batch.images
        if batch.source is None:
            raise FastganError("unpaired translation needs a second domain; set data.pairs=unpaired")
        return batch.source

    def translate(self, players: Mapping[str, nn.Module], images: Tensor, *, back: bool = False) -> Tensor:
        translated: Tensor = players["back" if back else "generator"](images)
        return translated

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.translate(players, self.sources(batch, draw))

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        x, y = self.sources(batch, draw), batch.images
        there, here = self.translate(players, x), self.translate(players, y, back=True)
        return x, there, self.translate(players, there, back=True), y, here, self.translate(players, here)


class Critic(nn.Module):
    """A critic with the buffer of images that it is shown again."""

    def __init__(self, network: nn.Module, buffer: int, image: ImageShape) -> None:
        super().__init__()
        self.network = network
        self.buffer = ImageBuffer(buffer, image.channels, image.size)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


@dataclass
class _Fakes:
    """G(x) and F(y) with their graphs, and what they were made of."""

    x: Tensor
    y: Tensor
    there: Tensor
    here: Tensor


class _Play:
    """The turns of one game."""

    def __init__(self, options: CycleGAN, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> None:
        self.options, self.scalars, self.loss = options, scalars, LOSSES[options.loss]
        self.generator, self.back = players["generator"], players["back"]
        self.critics = players["critic"], players["critic_back"]
        self.augment = Augmenter(options.augment, scalars, sum_over_ranks)
        self.fakes: _Fakes | None = None

    def critics_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        x, y = self.options.sources(batch, draw), batch.images
        fakes = _Fakes(x, y, self.generator(x).to(y.dtype), self.back(y).to(x.dtype))
        self.fakes = fakes
        statistics: dict[str, Tensor] = {}
        real_logits: list[Tensor] = []
        sides = (("loss", y, fakes.there), ("loss_back", x, fakes.here))
        for critic, (name, real, fake) in zip(self.critics, sides, strict=True):
            shown = critic.buffer.exchange(fake, draw)  # type: ignore[operator,union-attr]
            seen = self.augment(real, draw), self.augment(shown, draw)
            result = critic_backward(critic, *seen, self.loss.critic)
            statistics[name] = result.loss
            real_logits.append(result.real_logits.flatten())
        self.augment.observe(torch.cat(real_logits))
        return statistics | augment_statistics(self.augment)

    def generators_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.fakes is not None, "the generators' turn comes after the critics'"
        f, self.fakes = self.fakes, None
        forward, backward = self.critics
        with frozen(forward), frozen(backward):
            terms = {
                "adversarial": self._adversarial(forward, f.y, f.there, draw)
                + self._adversarial(backward, f.x, f.here, draw),
                "cycle": self._distance(self.back(f.there), f.x) + self._distance(self.generator(f.here), f.y),
            }
            if highest(self.options.identity) > 0:
                terms["identity"] = self._distance(self.generator(f.y), f.y) + self._distance(self.back(f.x), f.x)
            weights = dict(self.scalars) | {"identity": self.scalars["identity"] * self.scalars["cycle"]}
            total = torch.stack([weights[name].to(term.dtype) * term for name, term in terms.items()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}

    @staticmethod
    def _distance(made: Tensor, wanted: Tensor) -> Tensor:
        return l1_loss(made.to(wanted.dtype), wanted)

    def _adversarial(self, critic: nn.Module, real: Tensor, fake: Tensor, draw: Draw) -> Tensor:
        fake_logits, real_logits = critic(self.augment(fake, draw)), real.new_zeros(())
        if self.loss.generator_compares:
            with torch.no_grad():
                real_logits = critic(self.augment(real, draw))
        return self.loss.generator(real_logits, fake_logits)
