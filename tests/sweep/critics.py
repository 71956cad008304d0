"""Small critics in the shapes that GANs are trained with: float64, hundreds to a few thousand parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sweep.compare import F64, images, spread
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fastgan.contract import ImageShape
from fastgan.models import DCGAN, R3GAN, Dense, ResNet
from fastgan.penalty import Samples


class EqualConv(nn.Module):
    """Convolution with weights of variance 1, scaled by 1/sqrt(fan_in) in forward. stride 2 is behind a blur."""

    kernel: Tensor

    def __init__(self, before: int, width: int, size: int, *, down: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, before, size, size))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.scale, self.padding, self.down = 1 / math.sqrt(before * size**2), size // 2, down
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        channels, around = x.shape[1], [1 + self.padding] * 4
        blurred = F.conv2d(F.pad(x, around), self.kernel.repeat(channels, 1, 1, 1), groups=channels)
        return F.conv2d(blurred, weight, self.bias, stride=2)


class EqualLinear(nn.Module):
    """Linear with weights of variance 1, scaled in forward."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, before)), nn.Parameter(torch.zeros(width))
        self.scale = 1 / math.sqrt(before)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """x [N, C, H, W] with a channel of the mean standard deviation over groups of samples (Karras et al. 2018)."""
    count, channels, height, width = x.shape
    group = min(group, count)
    y = x.reshape(group, -1, 1, channels, height, width)
    y = y - y.mean(0)
    y = (y.square().mean(0) + 1e-8).sqrt().mean([2, 3, 4]).reshape(-1, 1, 1, 1)
    return torch.cat([x, y.repeat(group, 1, height, width)], 1)


class Style(nn.Module):
    """StyleGAN2's residual critic: [N, 3, 8, 8] -> [N, 1]."""

    def __init__(self, *, deviation: int = 0) -> None:
        super().__init__()
        self.deviation = deviation
        self.from_rgb = EqualConv(3, 4, 1)
        self.skip = EqualConv(4, 6, 1, down=True, bias=False)
        self.conv0, self.conv1 = EqualConv(4, 4, 3), EqualConv(4, 6, 3, down=True)
        self.conv2 = EqualConv(6 + (deviation > 0), 6, 3)
        self.linear, self.out = EqualLinear(6 * 16, 8), EqualLinear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self._act(self.from_rgb(x))
        branch = self._act(self.conv1(self._act(self.conv0(x))))
        x = (self.skip(x) + branch) * (1 / math.sqrt(2))
        if self.deviation:
            x = minibatch_deviation(x, self.deviation)
        return self.out(self._act(self.linear(self._act(self.conv2(x)).flatten(1))))

    @staticmethod
    def _act(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


class Projection(nn.Module):
    """([N, 3, 8, 8], labels [N]) -> [N]: logit + inner product with the label's embedding (arXiv:1802.05637)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(3, 6, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(6, 8, 4, stride=2, padding=1))
        self.out = spectral_norm(nn.Linear(8, 1))
        self.embed = spectral_norm(nn.Embedding(classes, 8))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        features = F.relu(self.conv2(F.relu(self.conv1(x)))).sum((2, 3))
        return self.out(features).squeeze(1) + (self.embed(labels) * features).sum(1)


class Concatenated(nn.Module):
    """([N, 3, 8, 8], labels [N]) -> [N]: the label as maps beside the image, and as per-sample gains and offsets."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.map = nn.Embedding(classes, 64)
        self.conv = nn.Conv2d(4, 6, 4, 2, 1)
        self.gain, self.offset = nn.Embedding(classes, 6), nn.Embedding(classes, 6)
        self.out = nn.Linear(96, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = torch.cat([x, self.map(labels).view(-1, 1, 8, 8)], 1)
        x = F.leaky_relu(self.conv(x), 0.2)
        x = x * (1 + self.gain(labels)[:, :, None, None]) + self.offset(labels)[:, :, None, None]
        return self.out(F.leaky_relu(x, 0.2).flatten(1)).flatten()


def patch() -> nn.Module:
    """PatchGAN without normalisation: [N, 3, 8, 8] -> maps [N, 1, 3, 3]."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 8, 4, stride=1, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 1, 3, padding=1),
    )


def audio() -> nn.Module:
    """MelGAN's critic with a mean over time: [N, 1, 64] -> [N]."""
    return nn.Sequential(
        nn.Sequential(nn.ReflectionPad1d(7), weight_norm(nn.Conv1d(1, 4, 15)), nn.LeakyReLU(0.2, inplace=True)),
        nn.Sequential(weight_norm(nn.Conv1d(4, 8, 9, stride=4, padding=4, groups=2)), nn.LeakyReLU(0.2, inplace=True)),
        nn.Sequential(weight_norm(nn.Conv1d(8, 8, 3, padding=3, dilation=3, groups=4)), nn.LeakyReLU(0.2)),
        weight_norm(nn.Conv1d(8, 1, 3, padding=1)),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(0),
    )


class UNet(nn.Module):
    """[N, 3, 8, 8] -> [N]: skips, pooling, bilinear upsampling, weight norm, a global mean, tied and unused weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.down = nn.Conv2d(4, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.deeper = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.deeper.weight = self.deep.weight
        self.up = nn.Conv2d(16, 4, 3, padding=1)
        self.merge = nn.Conv2d(8, 6, 3, padding=1)
        self.unused = nn.Linear(3, 3)
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        full = F.leaky_relu(self.enter(x), 0.2)
        half = F.leaky_relu(self.down(F.avg_pool2d(full, 2)), 0.2)
        low = F.relu(self.deeper(F.relu(self.deep(F.max_pool2d(half, 2)))))
        y = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        y = F.leaky_relu(self.up(torch.cat([y, half], 1)), 0.2)
        y = F.interpolate(y, scale_factor=2, mode="nearest")
        y = F.leaky_relu(self.merge(torch.cat([y, full], 1)), 0.2)
        return self.out(y.mean((2, 3))).squeeze(1)


class Pair(nn.Module):
    """(x [N, 6], y [N, 3, 2], index [N] int64) -> [N, 1]: a tuple as input."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.index, self.out = nn.Linear(12, 8), nn.Embedding(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        hidden = self.hidden(torch.cat([x, y.flatten(1)], 1)) * self.index(index)
        return self.out(F.leaky_relu(hidden + self.index(index), 0.1))


@dataclass(frozen=True)
class Case:
    """A critic of the zoo. hybrid: the loss needs a signal of its own, so "auto" may prefer autograd."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 8, 8)
    count: int = 4
    classes: int = 0
    hybrid: bool = False

    def samples(self, seed: int = 1) -> tuple[Samples, Samples]:
        """real and fake, [count, *shape] each."""
        return images(self.count, seed, self.shape), 1.5 * images(self.count, seed + 100, self.shape) - 0.2

    def options(self) -> dict[str, Any]:
        """Labels where the critic has them, others for fake than for real; epsilon."""
        epsilon = torch.linspace(0.1, 0.8, self.count, dtype=F64)
        if not self.classes:
            return {"epsilon": epsilon}
        labels = torch.arange(self.count) % self.classes
        return {"epsilon": epsilon, "real_labels": labels, "fake_labels": (labels + 2) % self.classes}


class PairCase(Case):
    """Samples that are tuples."""

    def samples(self, seed: int = 1) -> tuple[Samples, Samples]:
        def one(seed: int) -> Samples:
            return images(self.count, seed, (6,)), images(self.count, seed + 1, (3, 2)), torch.arange(self.count) % 5

        return one(seed), one(seed + 100)


def dcgan(norm: str = "none") -> nn.Module:
    return spread(DCGAN(critic_width=3, max_width=10, critic_norm=norm).critic(ImageShape(3, 16)))


def r3gan() -> nn.Module:
    """Its zero-initialised convolutions are not zero here."""
    family = R3GAN(widths=(8, 8, 4), blocks=(1, 2, 1), expansion=2, group_size=4)
    return spread(family.critic(ImageShape(3, 16)))


def sngan() -> nn.Module:
    return spread(ResNet(critic_width=3, critic_max_width=6).critic(ImageShape(3, 32)))


def sngan_evaluated() -> nn.Module:
    """In eval mode, where spectral norm keeps its vectors; they have been through some steps before."""
    critic = sngan()
    for seed in range(3):
        critic(images(1, seed, (3, 32, 32)))
    return critic.eval()


ZOO: dict[str, Case] = {
    "dcgan": Case(dcgan, (3, 16, 16)),
    "dcgan-spectral": Case(lambda: dcgan("spectral"), (3, 16, 16)),
    "dense": Case(lambda: spread(Dense(critic_stem=4, critic_layers=(8,)).critic(ImageShape(1, 16))), (1, 16, 16)),
    "sngan": Case(sngan, (3, 32, 32)),
    "sngan-eval": Case(sngan_evaluated, (3, 32, 32)),
    "r3gan": Case(r3gan, (3, 16, 16), count=5),
    "style": Case(lambda: spread(Style(), equalised=True)),
    "style-deviation": Case(lambda: spread(Style(deviation=4), equalised=True), hybrid=True),
    "style-groups": Case(lambda: spread(Style(deviation=2), equalised=True), hybrid=True),
    "projection": Case(lambda: spread(Projection()), classes=5),
    "concatenated": Case(lambda: spread(Concatenated()), count=6, classes=5),
    "patch": Case(lambda: spread(patch()), hybrid=True),
    "audio": Case(lambda: spread(audio()), (1, 64), count=5),
    "unet": Case(lambda: spread(UNet()), count=5),
    "pair": PairCase(lambda: spread(Pair()), count=6),
}
