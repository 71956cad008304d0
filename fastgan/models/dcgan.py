"""DCGAN (Radford et al. 2016, arXiv:1511.06434): strided (transposed) convolutions and batch normalisation.

The published layers and initialisation, for any power of two from 16 to 512. With width w and S pixels there
are w S/8 channels at 4x4, halved at each doubling, down to w at S/2, and nowhere more than max_width.
Generator:

    z [N, latent] -> ConvT 4x4 -> (ConvT to twice the size) ... -> ConvT to S x S -> tanh

with norm and ReLU after all but the last; the critic mirrors it with leaky ReLU of slope 0.2, no norm after
its first and last convolution, and one logit per image. All convolutions are 4x4 with stride 2 and padding 1,
save the two between 4x4 and 1x1. Convolutions have a bias unless the network uses batch normalisation.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from fastgan.contract import ImageShape
from fastgan.errors import FastganError, suggest
from fastgan.models.msg_gan import MultiScaleCritic, MultiScaleGenerator
from fastgan.models.sizes import at_least_one, check_attention, levels, per_image
from fastgan.models.spectral import spectral_norm
from fastgan.nn import ConditionalBatchNormAct2d, ConditionalSequential, Conv2d, SelfAttention2d, fuse

GENERATOR_NORMS = ("batch", "none")
CRITIC_NORMS = ("batch", "none", "spectral")


@dataclass(frozen=True)
class DCGAN:
    """Options of the DCGAN networks.

    generator_width, critic_width: channels at half the image's size
    max_width:      most channels anywhere
    generator_norm: "batch" or "none"
    critic_norm:    "batch" as published; "none", for gradient penalties; "spectral" (Miyato et al. 2018)
    attention:      resolution at which both networks have self-attention (Zhang et al. 2019; 0: nowhere)
    multi_scale:    images at all resolutions from generator to critic (fastgan.models.msg_gan)
    """

    generator_width: int = 64
    critic_width: int = 64
    max_width: int = 1024
    generator_norm: str = "batch"
    critic_norm: str = "batch"
    attention: int = 0
    multi_scale: bool = False

    def __post_init__(self) -> None:
        at_least_one(
            "DCGAN",
            generator_width=self.generator_width,
            critic_width=self.critic_width,
            max_width=self.max_width,
        )
        for name, norms in (("generator_norm", GENERATOR_NORMS), ("critic_norm", CRITIC_NORMS)):
            norm = getattr(self, name)
            if norm not in norms:
                raise FastganError(f"DCGAN: {name} {norm!r} is unknown{suggest(norm, norms)}")

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        """z [N, latent] -> [N, C, S, S] in (-1, 1). FastganError for sizes that are not 16, 32, ..., 512."""
        widths = self._widths(image, self.generator_width)
        plain = Generator(latent, widths, image.channels, norm=self.generator_norm, attention=self.attention)
        if not self.multi_scale:
            return fuse(plain)
        blocks = [fuse(block) for block in plain.blocks]  # each by itself: their results are looked at one by one
        return MultiScaleGenerator(blocks, widths, image.channels, plain.to_image)

    def labelled_generator(self, image: ImageShape, latent: int) -> nn.Module:
        """(z [N, latent], labels [N]) -> [N, C, S, S]: conditional batch normalisation. FastganError as generator."""
        if self.generator_norm != "batch":
            raise FastganError(
                f"DCGAN: generator_norm {self.generator_norm!r} has no batch normalisation for labels to scale; set it "
                "to 'batch', or the system's labels to 'concatenation'"
            )
        if self.multi_scale:
            raise FastganError("DCGAN: multi_scale has no labels inside; set it to false, or labels to 'concatenation'")
        widths, classes, norm = self._widths(image, self.generator_width), image.classes, self.generator_norm
        return fuse(Generator(latent, widths, image.channels, norm=norm, classes=classes, attention=self.attention))

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        """x [N, C, S, S] -> logits [N] or [N, outputs]. FastganError for sizes that are not 16, 32, ..., 512."""
        widths, small = self._widths(image, self.critic_width)[::-1], image.channels if self.multi_scale else 0
        plain = Critic(
            image.channels, widths, norm=self.critic_norm, outputs=outputs, attention=self.attention, small=small
        )
        return MultiScaleCritic([fuse(b) for b in plain.blocks], plain.to_logit) if small else fuse(plain)

    def _widths(self, image: ImageShape, width: int) -> list[int]:
        """Channels at 4x4, 8x8, ..., S/2."""
        inner = levels("DCGAN", image, 16, 512)[:-1]
        check_attention("DCGAN", self.attention, inner)
        return [min(width * image.size // (2 * size), self.max_width) for size in inner]


class Generator(nn.Module):
    """z [N, latent] -> images [N, channels, S, S] in (-1, 1), S = 2^(len(widths) + 2).

    blocks: one per resolution below S, each a Sequential (conv, norm, act); to_image: (conv, act)
    classes: with them it is (z, labels [N]) -> images, the norms conditional
    """

    def __init__(self, latent: int, widths: list[int], channels: int, *, norm: str, classes: int = 0,
                 attention: int = 0) -> None:  # fmt: skip
        super().__init__()
        bias = norm != "batch"
        blocks: list[nn.Module] = []
        for before, width in zip([latent, *widths], widths, strict=False):
            conv = _conv_transpose(before, width, bias=bias, first=not blocks)
            block = _labelled(conv, classes) if classes else _block(conv, norm, nn.ReLU(inplace=True))
            if attention == 4 << len(blocks):
                block = type(block)(block, SelfAttention2d(width))
            blocks.append(block)
        self.blocks = ConditionalSequential(*blocks) if classes else nn.Sequential(*blocks)
        self.to_image = _block(_conv_transpose(widths[-1], channels, bias=bias), "none", nn.Tanh())
        _initialise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = z[:, :, None, None]
        images: Tensor = self.to_image(self.blocks(x) if labels is None else self.blocks(x, labels))
        return images


class Critic(nn.Module):
    """x [N, channels, S, S] -> logits [N] or [N, outputs], S = 2^(len(widths) + 2).

    blocks: one per halving of the size, each a Sequential (conv, norm, act); to_logit: convolution to 1x1
    small: channels of an image beside the result of each block (MultiScaleCritic)
    """

    def __init__(self, channels: int, widths: list[int], *, norm: str, outputs: int = 1, attention: int = 0,
                 small: int = 0) -> None:  # fmt: skip
        super().__init__()
        bias = norm != "batch"
        blocks: list[nn.Module] = []
        for before, width in zip([channels, *(w + small for w in widths)], widths, strict=False):
            conv = Conv2d(before, width, 4, stride=2, padding=1, bias=bias)
            block = _block(conv, norm if blocks else "none", nn.LeakyReLU(0.2, inplace=True))
            blocks.append(block)
            if attention == 2 << (len(widths) - len(blocks) + 1):
                blocks[-1] = nn.Sequential(block, SelfAttention2d(width, twice=True))
        self.blocks = nn.Sequential(*blocks)
        self.to_logit = Conv2d(widths[-1] + small, outputs, 4, bias=bias)
        _initialise(self)
        if norm == "spectral":
            for layer in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        return per_image(self.to_logit(self.blocks(x)))


def _conv_transpose(before: int, width: int, *, bias: bool, first: bool = False) -> nn.ConvTranspose2d:
    """From 1x1 to 4x4 if it is the first, else to twice the size."""
    stride, padding = (1, 0) if first else (2, 1)
    return nn.ConvTranspose2d(before, width, 4, stride=stride, padding=padding, bias=bias)


def _block(conv: nn.Conv2d | nn.ConvTranspose2d, norm: str, act: nn.Module) -> nn.Sequential:
    """(conv, norm, act); without the norm where it is not "batch"."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm == "batch":
        layers["norm"] = nn.BatchNorm2d(conv.out_channels)
    layers["act"] = act
    return nn.Sequential(layers)


def _labelled(conv: nn.ConvTranspose2d, classes: int) -> nn.Sequential:
    """(conv, conditional norm with ReLU)."""
    norm = ConditionalBatchNormAct2d(conv.out_channels, classes)
    return ConditionalSequential(OrderedDict[str, nn.Module](conv=conv, norm=norm))


def _initialise(network: nn.Module) -> None:
    """Convolutions N(0, 0.02^2), norms N(1, 0.02^2), biases 0. Radford et al. 2016, section 4."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
