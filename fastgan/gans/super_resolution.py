"""Super-resolution (SRGAN, Ledig et al. 2017, arXiv:1609.04802): images y from x, y at 1/scale of the size.

Players: a generator G(x) and a critic D(y). The small images are made of the real ones on the device. A step is

    critic     adds the gradient of  loss.critic(D(y), D(G(x)))  to the critic; left out with adversarial = 0
    generator  adds that of  pixel * |y - G(x)|^p + features * F(y, G(x)) + adversarial * loss.generator(D(G(x)))

F is the distance of the critic's own activations (feature="critic"), or the mean squared one of VGG16's last
convolution (feature="vgg16"; the paper has VGG19's, scaled by 1/12.75 as here, with weight 1 and no pixel loss): its
weights are published for ImageNet and have to be at hand. With features = 0 and adversarial = 0 this is the SRResNet
of the paper: the highest PSNR, and the smoothest pictures. adversarial may be a schedule that begins at 0: first by
pixels, then against the critic, as the paper trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from fastgan.augment import Augment, Augmenter
from fastgan.contract import Batch, Draw, ImageShape, PairCritic, Turn
from fastgan.dist import sum_over_ranks
from fastgan.errors import FastganError, suggest
from fastgan.gans.play import augment_statistics, check_augment, frozen
from fastgan.losses import LOSSES
from fastgan.models import SRCritic, SRResNet
from fastgan.models.patch_critic import matched_features
from fastgan.models.srresnet import enlarged, reduced
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, highest, lowest

if TYPE_CHECKING:
    from fastgan.features import VGG16Maps

SCALES = (2, 4, 8)
KERNELS = ("bicubic", "box")
PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_loss, "l2": mse_loss}
FEATURES = ("critic", "vgg16")
WEIGHTS = ("pixel", "features", "adversarial")


@dataclass(frozen=True)
class SuperResolution:
    """Options of super-resolution.

    generator, critic: the two networks (fastgan.models)
    scale:       2, 4 or 8
    kernel:      how the small images are made: "bicubic" (antialiased) or "box" (means)
    loss:        a key of fastgan.losses.LOSSES
    pixel_loss:  "l1" or "l2"
    feature:     "critic": activations of the critic; "vgg16": of the network trained on ImageNet
    pixel, features, adversarial: weights of the generator's terms; numbers or schedules
    vgg16:       file of VGG16's weights ("": the one in the cache folder)
    augment:     augmentation of what the critic sees (fastgan.augment)
    """

    generator: SRResNet = field(default_factory=SRResNet)
    critic: PairCritic = field(default_factory=SRCritic)
    scale: int = 4
    kernel: str = "bicubic"
    loss: str = "non_saturating"
    pixel_loss: str = "l1"
    feature: str = "critic"
    pixel: Scheduled = 1.0
    features: Scheduled = 0.0
    adversarial: Scheduled = 1e-3
    vgg16: str = ""
    augment: Augment = field(default_factory=Augment)

    averaged = ("generator",)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise FastganError(f"scale must be 2, 4 or 8, got {self.scale}")
        for name, known in (
            ("loss", LOSSES),
            ("kernel", KERNELS),
            ("pixel_loss", PIXEL_LOSSES),
            ("feature", FEATURES),
        ):
            if getattr(self, name) not in known:
                raise FastganError(f"{name} {getattr(self, name)!r} is unknown{suggest(getattr(self, name), known)}")
        for name in WEIGHTS:
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        check_augment(self.augment, self.loss)

    @property
    def plays_against_a_critic(self) -> bool:
        return highest(self.adversarial) > 0 or (self.feature == "critic" and highest(self.features) > 0)

    @property
    def margin(self) -> int:
        return self.generator.margin(self.scale)

    def schedules(self) -> dict[str, Scheduled]:
        return {name: getattr(self, name) for name in WEIGHTS} | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        if image.size % self.scale:
            raise FastganError(
                f"scale {self.scale} does not divide the images' {image.size} pixels; set data.size to a multiple of "
                f"{self.scale}, such as {max(1, round(image.size / self.scale)) * self.scale}"
            )
        return {"generator": self.generator.upscaler(image.channels, self.scale), "critic": self.critic.critic(image)}

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, players["generator"], players["critic"], scalars)
        if not self.plays_against_a_critic:
            return (Turn("generator", ("generator",), play.generator_turn),)
        return (
            Turn("critic", ("critic",), play.critic_turn),
            Turn("generator", ("generator",), play.generator_turn, fresh=False),
        )

    def reduce(self, images: Tensor) -> Tensor:
        """The small images [N, C, S / scale, S / scale] of images [N, C, S, S]."""
        return reduced(images, self.scale, self.kernel)

    def upscale(self, players: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        large: Tensor = players["generator"](images)
        return large.clamp(-1, 1)

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.upscale(players, self.reduce(batch.images))

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        small = self.reduce(batch.images)
        return enlarged(small, self.scale), self.upscale(players, small), batch.images


class _Play:
    """The turns of one game: the players, the weights, and the fakes that two turns share."""

    def __init__(
        self, options: SuperResolution, generator: nn.Module, critic: nn.Module, scalars: Mapping[str, Tensor]
    ) -> None:
        self.options, self.generator, self.critic, self.scalars = options, generator, critic, scalars
        self.loss, self.augment = LOSSES[options.loss], Augmenter(options.augment, scalars, sum_over_ranks)
        self.fake: Tensor | None = None
        self.vgg16: VGG16Maps | None = None
        if options.feature == "vgg16" and highest(options.features) > 0:
            device = next(generator.parameters()).device
            self.vgg16 = _opened(options.vgg16).to(device).eval().requires_grad_(False)

    def _fakes(self, batch: Batch) -> Tensor:
        fake: Tensor = self.generator(self.options.reduce(batch.images)).to(batch.images.dtype)
        return fake

    def critic_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        self.fake = self._fakes(batch)
        real, fake = self.augment(batch.images, draw), self.augment(self.fake.detach(), draw)
        result = critic_backward(self.critic, real, fake, self.loss.critic)
        self.augment.observe(result.real_logits)
        return {
            "loss": result.loss,
            "real_logits": result.real_logits.mean(),
            "fake_logits": result.fake_logits.mean(),
            **augment_statistics(self.augment),
        }

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        fake, self.fake = self.fake if self.fake is not None else self._fakes(batch), None
        with frozen(self.critic):
            terms = {"pixel": PIXEL_LOSSES[self.options.pixel_loss](fake, batch.images)}
            if highest(self.options.features) > 0:
                terms["features"] = self._feature_distance(fake, batch.images)
            if highest(self.options.adversarial) > 0:
                terms["adversarial"] = self._adversarial(fake, batch.images, draw)
            total = torch.stack([self.scalars[name].to(term.dtype) * term for name, term in terms.items()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}

    def _feature_distance(self, fake: Tensor, real: Tensor) -> Tensor:
        if self.vgg16 is None:
            return matched_features(self.critic, fake, real)
        with torch.no_grad():
            wanted = self.vgg16(real.float())
        return mse_loss(self.vgg16(fake.float()), wanted)

    def _adversarial(self, fake: Tensor, real: Tensor, draw: Draw) -> Tensor:
        fake_logits = self.critic(self.augment(fake, draw))
        real_logits = real.new_zeros(())
        if self.loss.generator_compares:
            with torch.no_grad():
                real_logits = self.critic(self.augment(real, draw))
        return self.loss.generator(real_logits, fake_logits)


def _opened(file: str) -> VGG16Maps:
    """VGG16's last convolution with the weights in `file`, or in the cache folder."""
    from fastgan.features import open_vgg16_maps  # here: who only loads a generator needs nothing that reads images

    try:
        return open_vgg16_maps(file or None)
    except FastganError as error:
        raise FastganError(
            f"system.feature=vgg16: {str(error).split(':')[0]}; `fastgan eval --features vgg16 --download` gets them, "
            "system.vgg16=FILE names them, and system.feature=critic needs none"
        ) from None
