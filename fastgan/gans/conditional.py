"""The conditional GAN (Mirza & Osindero 2014, arXiv:1411.1784): images of a class that one asks for.

Players: a generator G(z, y) and a critic D(x, y). A step is that of fastgan.gans.play on a real image x with its label
y and a fake G(z, y) with the same label, so that the fakes have the classes' shares and an interpolate (WGAN-GP) lies
between two images of one class. With e(y) a learned vector per class, labels enter

    by projection      Miyato & Koyama 2018 (arXiv:1802.05637): D(x, y) = psi(phi(x)) + <e(y), phi(x)>, where phi is the
                       critic up to its last layer and psi, linear, that layer. Both are rows of one layer here: its
                       output number 0 plus number 1 + y. In the generator: conditional batch normalisation (de Vries
                       et al. 2017, arXiv:1707.00683), of families that have it; else by concatenation
    by concatenation   e(y) beside z, and beside the colours of every pixel of x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastgan.contract import Batch, Draw, ImageShape, LabelledNetworks, Turn
from fastgan.errors import FastganError, suggest
from fastgan.gans.play import Compared, Game, Play, at_least_one, needs_labels

LABELS = ("projection", "concatenation")


@dataclass(frozen=True)
class ConditionalGAN(Game):
    """Options of the conditional GAN, besides those of every game with one critic.

    labels:      how they enter: "projection" or "concatenation"
    label_width: length of e(y) where it is concatenated
    simultaneous: the generator learns from the critic as it was before the step's last update of it
    """

    labels: str = "projection"
    label_width: int = 16
    simultaneous: bool = False

    labelled = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.labels)
        at_least_one(self, "label_width")

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        needs_labels("a conditional GAN", image)
        projected = self.labels == "projection"
        critic = ProjectionCritic if projected else ConcatenationCritic
        return {
            "generator": labelled_generator(self, image, inside=projected, width=self.label_width),
            "critic": critic(self, image),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars).turns()

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None, "a conditional GAN is asked for labels"
        images: Tensor = players["generator"](latents, labels)
        return images


class _Play(Play):
    def compare(self, batch: Batch, draw: Draw) -> Compared:
        latents = self.options.latents(draw).to(batch.images.dtype)
        return Compared(batch.images, self.players["generator"](latents, batch.labels), labels=batch.labels)


def check_labels(labels: str) -> None:
    """FastganError unless it is one of LABELS."""
    if labels not in LABELS:
        raise FastganError(f"labels {labels!r} is unknown{suggest(labels, LABELS)}")


def labelled_generator(options: Game, image: ImageShape, *, inside: bool, width: int) -> nn.Module:
    """(z [N, latent], labels [N]) -> [N, C, S, S]. inside: by conditional batch normalisation where there is some."""
    if inside and isinstance(options.networks, LabelledNetworks):
        return options.networks.labelled_generator(image, options.latent)
    return ConcatenationGenerator(options, image, width)


class ConcatenationGenerator(nn.Module):
    """(z [N, latent], labels [N]) -> [N, C, S, S]: a generator of [z, e(labels)]."""

    def __init__(self, options: Game, image: ImageShape, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(image.classes, width)
        self.network = options.networks.generator(image, options.latent + width)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.network(torch.cat([z, self.label(labels).to(z.dtype)], 1))
        return images


class ConcatenationCritic(nn.Module):
    """(x [N, C, S, S], labels [N]) -> logits [N]: a critic of the image with e(label) as further channels."""

    def __init__(self, options: ConditionalGAN, image: ImageShape) -> None:
        super().__init__()
        width = options.label_width
        self.label = nn.Embedding(image.classes, width)
        self.network = options.networks.critic(replace(image, channels=image.channels + width))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        label = self.label(labels).to(x.dtype)
        planes = label.view(*label.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        logits: Tensor = self.network(torch.cat([x, planes], 1))
        return logits


class ProjectionCritic(nn.Module):
    """(x [N, C, S, S], labels [N]) -> logits [N]: output 0 of a critic plus output 1 + label."""

    def __init__(self, options: Game, image: ImageShape) -> None:
        super().__init__()
        self.network = options.networks.critic(image, 1 + image.classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        values: Tensor = self.network(x)
        return values[:, 0] + values[:, 1:].gather(1, labels[:, None])[:, 0]
