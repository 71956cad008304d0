"""Inpainting: what is under a mask is filled (Pathak et al. 2016, arXiv:1604.07379; Iizuka et al. 2017).

Players: a generator, a critic of the whole image and one of the square around the hole, as
Iizuka et al. (doi:10.1145/3072959.3073659, section 3.2) have them; each can be left out. What is known stays exactly as
it was: y' = y outside of the mask and G within, where G = s + 2 network(s, mask) and s is the image with its hole
filled smoothly from around it. Masks are drawn on the device (fastgan.gans.masks). A step is

    critics    add the gradients of  loss.critic(D(y, mask), D(y', mask)), for each critic
    generator  adds the gradient of  l1 * |y - y'| within the hole + outside * |y - G| outside of it
                                     + adversarial * sum of loss.generator(D(y', mask)) over the critics

where |.| is the mean over the pixels that are meant. The paper's generator is a dilated network, this one a U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastgan.augment import Augment, Augmenter
from fastgan.contract import Batch, Draw, ImageShape, PairCritic, Translator, Turn
from fastgan.dist import group_mean, sum_over_ranks
from fastgan.errors import FastganError, suggest
from fastgan.gans.masks import centres, check_kind, crops, draw_masks, smooth_fill
from fastgan.gans.play import augment_statistics, check_augment, frozen, seen_together
from fastgan.losses import LOSSES
from fastgan.models import PatchCritic, UNet
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, highest, lowest

WEIGHTS = ("l1", "outside", "adversarial")


@dataclass(frozen=True)
class Inpainting:
    """Options of inpainting.

    generator: network from images to images (fastgan.models)
    critic:    of the whole image and of the square around the hole
    mask:      "box", "free" (strokes) or "both"
    smallest, largest: sides of a box, as shares of the image's
    whole, local: whether there is a critic of the whole image, of the square around the hole (half as wide)
    loss:      a key of fastgan.losses.LOSSES
    l1, outside, adversarial: weights of the generator's terms; numbers or schedules
    augment:   augmentation of what the critics see, image and mask alike (fastgan.augment)
    """

    generator: Translator = field(default_factory=lambda: UNet(dropout=0.0, from_zero=True))
    critic: PairCritic = field(default_factory=lambda: PatchCritic(norm="instance"))
    mask: str = "both"
    smallest: float = 0.25
    largest: float = 0.5
    whole: bool = True
    local: bool = True
    loss: str = "hinge"
    l1: Scheduled = 10.0
    outside: Scheduled = 1.0
    adversarial: Scheduled = 0.1
    augment: Augment = field(default_factory=Augment)

    averaged = ("generator",)

    def __post_init__(self) -> None:
        check_kind(self.mask)
        if self.loss not in LOSSES:
            raise FastganError(f"loss {self.loss!r} is unknown{suggest(self.loss, LOSSES)}")
        if not 0 < self.smallest <= self.largest < 1:
            raise FastganError(
                f"a box's sides must be between 0 and the image's: expected 0 < smallest <= largest < 1, got "
                f"{self.smallest} and {self.largest}"
            )
        for name in WEIGHTS:
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        check_augment(self.augment, self.loss)
        if not (self.whole or self.local):
            raise FastganError("inpainting needs a critic: whole=true, local=true, or both")

    def schedules(self) -> dict[str, Scheduled]:
        return {name: getattr(self, name) for name in WEIGHTS} | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        critics = {}
        if self.whole:
            critics["whole"] = self.critic.critic(image, 1)
        if self.local:
            critics["local"] = self.critic.critic(ImageShape(image.channels, image.size // 2), 1)
        return {
            "generator": self.generator.translator(image, image.channels + 1),
            "critic": nn.ModuleDict(critics),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, players, scalars)
        return (
            Turn("critic", ("critic",), play.critic_turn),
            Turn("generator", ("generator",), play.generator_turn, fresh=False),
        )

    @property
    def box(self) -> tuple[float, float]:
        return self.smallest, self.largest

    def masks(self, batch: Batch, draw: Draw) -> Tensor:
        """Holes [N, 1, S, S] for the images of a batch."""
        made = draw_masks(self.mask, batch.images.shape[-1], self.smallest, self.largest, draw)
        return made.to(batch.images.dtype)

    def raw(self, generator: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """The smoothly filled images and what the network adds to them, [N, C, S, S], known pixels and all."""
        smooth = smooth_fill(images, masks)
        added: Tensor = generator(torch.cat([smooth, masks], 1))
        return smooth + 2 * added.to(images.dtype)

    def inpaint(self, players: Mapping[str, nn.Module], images: Tensor, masks: Tensor, draw: Draw) -> Tensor:
        return torch.where(masks > 0, self.raw(players["generator"], images, masks), images)

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.inpaint(players, batch.images, self.masks(batch, draw), draw)

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        masks = self.masks(batch, draw)
        holed = torch.where(masks > 0, torch.zeros_like(batch.images), batch.images)
        return holed, self.inpaint(players, batch.images, masks, draw), batch.images


class _Play:
    """The turns of one game: the players, the weights, and what the second turn takes over from the first."""

    def __init__(self, options: Inpainting, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> None:
        self.options, self.scalars, self.loss = options, scalars, LOSSES[options.loss]
        self.generator, self.critics = players["generator"], players["critic"]
        self.augment = Augmenter(options.augment, scalars, sum_over_ranks)
        self.kept: tuple[Tensor, Tensor] | None = None  # masks, what the network made with its graph

    def _seen(self, name: str, images: Tensor, masks: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """What the critic called `name` gets: image and mask, or the square of both around the hole."""
        if name == "local":
            middle, side = centres(masks), images.shape[-1] // 2
            images, masks = crops(images, middle, side), crops(masks, middle, side)
        return seen_together(self.augment, (images, masks), draw)

    def critic_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        images, masks = batch.images, self.options.masks(batch, draw)
        made = self.options.raw(self.generator, images, masks)
        self.kept = masks, made
        filled = torch.where(masks > 0, made.detach(), images)
        statistics: dict[str, Tensor] = {}
        real_logits: list[Tensor] = []
        for name, critic in self.critics.items():  # type: ignore[operator]
            real, fake = (self._seen(name, x, masks, draw) for x in (images, filled))
            result = critic_backward(critic, real, fake, self.loss.critic)
            statistics[f"loss.{name}"] = result.loss
            real_logits.append(result.real_logits.flatten())
        self.augment.observe(torch.cat(real_logits))
        return statistics | augment_statistics(self.augment)

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.kept is not None, "the generator's turn comes after the critic's"
        (masks, made), self.kept = self.kept, None
        images = batch.images
        filled = torch.where(masks > 0, made, images)
        difference = (made - images).abs()
        with frozen(self.critics):
            terms = {
                "l1": _mean_within(difference, masks),
                "outside": _mean_within(difference, 1 - masks),
            }
            if highest(self.options.adversarial) > 0:
                terms["adversarial"] = torch.stack(
                    [self._adversarial(name, filled, images, masks, draw) for name in self.critics]  # type: ignore[attr-defined]
                ).sum()
            total = torch.stack([self.scalars[name].to(term.dtype) * term for name, term in terms.items()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}

    def _adversarial(self, name: str, filled: Tensor, images: Tensor, masks: Tensor, draw: Draw) -> Tensor:
        critic: nn.Module = self.critics[name]  # type: ignore[index]
        fake_logits, real_logits = critic(*self._seen(name, filled, masks, draw)), images.new_zeros(())
        if self.loss.generator_compares:
            with torch.no_grad():
                real_logits = critic(*self._seen(name, images, masks, draw))
        return self.loss.generator(real_logits, fake_logits)


def _mean_within(difference: Tensor, masks: Tensor) -> Tensor:
    """Mean of `difference` [N, C, S, S] over the pixels of `masks` [N, 1, S, S] of the whole batch, 0-dim."""
    share = group_mean(masks.mean())  # the same on every rank, so that the mean over ranks is that over all pixels
    return (difference * masks).mean() / share.clamp(min=1e-6)
