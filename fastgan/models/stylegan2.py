"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958): the networks of configuration F, at any width.

Generator: a mapping network f turns z into a style w, and a synthesis network makes an image of a learned 4x4 map in
convolutions that styles modulate:

    z -> z / rms(z) -> (linear, leaky ReLU) x mapping_layers -> w
    at 4x4: conv;  at 8x8, ..., S x S: conv to twice the size, conv        (section 2.2, equations 1 and 3)
    image = sum of 1x1 convolutions of every size, upsampled bilinearly    (skip connections, section 4.1)

A convolution modulates its input, convolves with weights that all samples share and demodulates its output
(fastgan.kernels.modulated_act); then come noise times a learned strength, bias, and leaky ReLU times sqrt(2). Doubling
is a transposed convolution and a blur with [1, 3, 3, 1]. Critic: residual blocks that halve the size (blur, then stride
2), minibatch standard deviation (Karras et al. 2018, arXiv:1710.10196, section 3), a convolution, two dense layers.

All layers have an equalised learning rate (the same, section 4.1): weights are stored as N(0, 1) and used times
1/sqrt(fan_in); those of f also times mapping_lr, and stored over it, so that they learn that much slower.

Where this differs from the paper's words: images are upsampled with the edge repeated, not with zeros around; groups of
the minibatch standard deviation are neighbours in the batch, so that ranks that have whole groups train as one would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models.sizes import at_least_one, levels, per_image
from fastgan.nn.convolution import conv2d
from fastgan.nn.modulated import Blur, Linear, ModulatedConv, ToImage, without_autocast

SLOPE, ACT_GAIN = 0.2, math.sqrt(2)


@dataclass(frozen=True)
class StyleGAN2:
    """Options of the StyleGAN2 networks.

    generator_width, critic_width: channels at the image's size, doubled at each halving
    max_width:      most channels anywhere
    style:          length of w
    mapping_layers, mapping_lr: of the mapping network f: its depth, and its learning rate as a share of the others'
    minibatch_std:  samples in a group of the critic's minibatch standard deviation (0: without it)
    """

    generator_width: int = 64
    critic_width: int = 64
    max_width: int = 512
    style: int = 512
    mapping_layers: int = 8
    mapping_lr: float = 0.01
    minibatch_std: int = 4

    def __post_init__(self) -> None:
        at_least_one(
            "StyleGAN2",
            generator_width=self.generator_width,
            critic_width=self.critic_width,
            max_width=self.max_width,
            style=self.style,
            mapping_layers=self.mapping_layers,
        )
        if not self.mapping_lr > 0:
            raise FastganError(f"StyleGAN2: mapping_lr must be more than 0, got {self.mapping_lr}")
        if self.minibatch_std < 0:
            raise FastganError(f"StyleGAN2: minibatch_std must be 0 or more, got {self.minibatch_std}")

    def generator(self, image: ImageShape, latent: int) -> Generator:
        """z [N, latent] -> [N, C, S, S]. FastganError for sizes that are not 8, 16, ..., 1024."""
        mapping = Mapping(latent, self.style, self.mapping_layers, self.mapping_lr)
        return Generator(mapping, Synthesis(self._widths(image, self.generator_width), self.style, image.channels))

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        """x [N, C, S, S] -> logits [N] or [N, outputs]. FastganError for sizes that are not 8, 16, ..., 1024."""
        return Critic(image.channels, self._widths(image, self.critic_width)[::-1], self.minibatch_std, outputs)

    def _widths(self, image: ImageShape, width: int) -> list[int]:
        """Channels at 4x4, 8x8, ..., S."""
        sizes = levels("StyleGAN2", image, 8, 1024)
        return [min(width * image.size // size, self.max_width) for size in sizes]


class Mapping(nn.Module):
    """z [N, latent] -> w [N, style], the function f of the paper, in the type of its weights, under autocast too."""

    def __init__(self, latent: int, style: int, layers: int, lr: float) -> None:
        super().__init__()
        sizes = [latent, *[style] * layers]
        self.style = style
        self.layers = nn.ModuleList(Linear(*pair, lr=lr) for pair in pairwise(sizes))

    def forward(self, z: Tensor) -> Tensor:
        with without_autocast(z):
            w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
            for layer in self.layers:
                w = F.leaky_relu(layer(w), SLOPE) * ACT_GAIN
        return w


class Synthesis(nn.Module):
    """(w [N, style] or [N, styles, style], noise [N, noise_numbers]) -> images [N, channels, S, S].

    Without noise, that of the buffers: the same for all samples and always, as in evaluation.
    widths: channels at 4x4, 8x8, ..., S
    """

    def __init__(self, widths: list[int], style: int, channels: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(4, 4, widths[0]))
        first = [StyledConv(widths[0], widths[0], style, 4)]
        sizes = [8 << i for i in range(len(widths) - 1)]
        pairs = zip(pairwise(widths), sizes, strict=True)
        doubled = [
            layer
            for (before, width), size in pairs
            for layer in (StyledConv(before, width, style, size, up=True), StyledConv(width, width, style, size))
        ]
        self.layers = nn.ModuleList([*first, *doubled])
        self.to_image = nn.ModuleList(ToImage(width, channels, style) for width in widths)
        self.styles = 2 * len(widths)
        self.noise_sizes = [layer.noise.numel() for layer in (*first, *doubled)]

    @property
    def noise_numbers(self) -> int:
        """How many numbers per sample the noise has."""
        return sum(self.noise_sizes)

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        w = w[:, None].expand(-1, self.styles, -1) if w.dim() == 2 else w
        given: Sequence[Tensor | None] = [None] * len(self.layers)
        if noise is not None:
            given = torch.split(noise.to(w.dtype), self.noise_sizes, 1)
        x = self.start[None].expand(w.shape[0], -1, -1, -1).permute(0, 3, 1, 2)  # channels-last strides
        image: Tensor | None = None
        for number, (layer, drawn) in enumerate(zip(self.layers, given, strict=True)):
            x = layer(x, w[:, number], drawn)
            if number % 2 == 0:  # the last convolution of a size
                more = self.to_image[number // 2](x, w[:, number + 1])
                image = more if image is None else _double(image) + more
        assert image is not None
        return image


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU: [N, before, H, W] -> [N, width, H, W] or twice the size."""

    noise: Tensor

    def __init__(self, before: int, width: int, style: int, size: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(before, width, style, up=up)
        self.bias = nn.Parameter(torch.zeros(width))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, size, size))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        drawn = self.noise if noise is None else noise.view(-1, *self.noise.shape[1:])
        y: Tensor = self.conv(x, w, drawn, self.strength, self.bias, SLOPE, ACT_GAIN)
        return y


class Generator(nn.Module):
    """(z [N, latent], noise [N, noise_numbers]) -> images [N, channels, S, S], in about [-1, 1].

    style_mean: [style], moving average of w, for truncation;  path_mean: 0-dim, that of path lengths (equation 4)
    """

    style_mean: Tensor
    path_mean: Tensor

    def __init__(self, mapping: Mapping, synthesis: Synthesis) -> None:
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis
        self.register_buffer("style_mean", torch.zeros(mapping.style))
        self.register_buffer("path_mean", torch.zeros(()))

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        images: Tensor = self.synthesis(self.mapping(z), noise)
        return images

    def truncated(self, w: Tensor, truncation: float) -> Tensor:
        """w [N, style] nearer to the mean: mean + truncation (w - mean) (Karras et al. 2019, appendix B)."""
        return torch.lerp(self.style_mean, w, truncation) if truncation != 1 else w


class Critic(nn.Module):
    """x [N, channels, S, S] -> logits [N] or [N, outputs].

    widths: channels at S, S/2, ..., 4;  group: of the minibatch standard deviation, 0 for none
    """

    def __init__(self, channels: int, widths: list[int], group: int, outputs: int = 1) -> None:
        super().__init__()
        self.group, last = group, widths[-1]
        self.from_image = Conv(channels, widths[0], 1, gain=ACT_GAIN)
        self.blocks = nn.Sequential(*(HalvingBlock(*pair) for pair in pairwise(widths)))
        self.conv = Conv(last + (1 if group else 0), last, 3, padding=1, gain=ACT_GAIN)
        self.dense = Conv(last, last, 4, gain=ACT_GAIN)  # of all pixels
        self.to_logit = Conv(last, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(_act(self.from_image(x)))
        x = _act(self.conv(with_minibatch_std(x, self.group) if self.group else x))
        return per_image(self.to_logit(_act(self.dense(x))))


class HalvingBlock(nn.Module):
    """[N, before, H, W] -> [N, width, H/2, W/2]: (conv, act, blur, conv of stride 2, act + blurred 1x1 conv) / sqrt(2).

    Gains stand in front of the activations, which let positive factors through: no pass of their own.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = Conv(before, before, 3, padding=1, gain=ACT_GAIN)
        self.blur = Blur(before, padding=2)
        self.halve = Conv(before, width, 3, stride=2)  # gain sqrt(2) / sqrt(2)
        self.halve_skip = Blur(before, padding=1, stride=2)
        self.skip = Conv(before, width, 1, gain=math.sqrt(0.5), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = _act(self.halve(self.blur(_act(self.conv(x)))))
        skip: Tensor = self.skip(self.halve_skip(x))
        return y + skip


class Conv(nn.Module):
    """Convolution with an equalised learning rate: weights N(0, 1) times gain/sqrt(fan_in), bias times gain."""

    def __init__(self, before: int, width: int, size: int, *, stride: int = 1, padding: int = 0, gain: float = 1.0,
                 bias: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.stride, self.padding, self.gain = stride, padding, gain
        self.scale = gain / math.sqrt(before * size**2)
        self.weight = nn.Parameter(torch.randn(width, before, size, size))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias is None or self.gain == 1 else self.bias * self.gain
        return conv2d(x, self.weight * self.scale, bias, self.stride, self.padding)


def with_minibatch_std(x: Tensor, group: int) -> Tensor:
    """x [N, C, H, W] with one more channel: the standard deviation over its group of samples, meant over all features.

    group: neighbours in the batch; where N is no multiple of it, the largest number of them that divides N
    """
    size = max(d for d in range(1, group + 1) if x.shape[0] % d == 0)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    groups = wide.view(-1, size, *x.shape[1:])
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)
    mean = (variance + 1e-8).sqrt().mean((1, 2, 3))
    feature = mean[:, None].expand(-1, size).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, feature.to(x.dtype)], 1)


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)


def _double(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
