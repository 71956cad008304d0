"""The auxiliary classifier GAN (Odena et al. 2017, arXiv:1610.09585): the critic names the class, too.

Players: a generator G(z, y) and a critic of an image alone, which returns a logit D(x) and class logits C(x). With the
cross-entropy H(C(x), y) = -log softmax(C(x))[y] a step is

    critic     minimises  loss.critic(D(x), D(G(z, y))) + penalties + H(C(x), y) + H(C(G(z, y)), y)
    generator  minimises  loss.generator(D(x), D(G(z, y))) + class_weight * H(C(G(z, y)), y)

(equations 2 and 3), where fakes are asked for the labels of the reals. The paper concatenates an embedding to z; here
labels enter the generator by conditional batch normalisation, of families that have it, or by concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.errors import FastganError
from fastgan.gans.classifying import ClassifyingPlay
from fastgan.gans.conditional import check_labels, labelled_generator
from fastgan.gans.play import Compared, Game, at_least_one, needs_labels


@dataclass(frozen=True)
class AuxiliaryGAN(Game):
    """Options of the auxiliary classifier GAN, besides those of every game with one critic.

    labels:       how they enter the generator: "projection" (by conditional batch normalisation) or "concatenation"
    label_width:  length of the vector per class where it is concatenated
    class_weight: of the classes in the generator's objective
    """

    labels: str = "projection"
    label_width: int = 16
    class_weight: float = 1.0

    labelled = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.labels)
        at_least_one(self, "label_width")
        if not self.class_weight >= 0:
            raise FastganError(f"class_weight must be 0 or more, got {self.class_weight}")

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        needs_labels("an auxiliary classifier GAN", image)
        return {
            "generator": labelled_generator(self, image, inside=self.labels == "projection", width=self.label_width),
            "critic": self.networks.critic(image, 1 + image.classes),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars, self.class_weight).turns()

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None, "an auxiliary classifier GAN is asked for labels"
        images: Tensor = players["generator"](latents, labels)
        return images


class _Play(ClassifyingPlay):
    def compare(self, batch: Batch, draw: Draw) -> Compared:
        latents = self.options.latents(draw).to(batch.images.dtype)
        fake = self.players["generator"](latents, batch.labels)
        return Compared(batch.images, fake, real_classes=batch.labels, fake_classes=batch.labels)
