"""Generators as others write them: what fuse() has to take as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm as new_weight_norm

SLOPE = 0.1


class DCGAN(nn.Module):
    """As in the DCGAN example of PyTorch: one Sequential, in-place activations, a branch on the device."""

    def __init__(self, latent: int = 10, width: int = 4, channels: int = 3, ngpu: int = 1) -> None:
        super().__init__()
        self.ngpu = ngpu
        self.main = nn.Sequential(
            nn.ConvTranspose2d(latent, width * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(width * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        if noise.is_cuda and self.ngpu > 1:
            images = nn.parallel.data_parallel(self.main, noise, range(self.ngpu))
        else:
            images = self.main(noise)
        return images


class UNetBlock(nn.Module):
    """pix2pix: down, the block inside, up; the input joins the output. The activations work in place."""

    def __init__(
        self, outer: int, inner: int, inside: nn.Module | None = None, *, outermost: bool = False, dropout: bool = False
    ) -> None:
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(inner if inside is None else 2 * inner, outer, 4, 2, 1, bias=outermost)
        layers: list[nn.Module] = [down] if outermost else [nn.LeakyReLU(0.2, True), down]
        if inside is not None:
            layers += [inside] if outermost else [nn.BatchNorm2d(inner), inside]
        layers += [nn.ReLU(True), up, nn.Tanh()] if outermost else [nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        if dropout:
            layers.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.outermost:
            return self.model(x)
        return torch.cat([x, self.model(x)], 1)


def unet(width: int = 4, dropout: bool = False) -> nn.Module:
    block = UNetBlock(4 * width, 4 * width)
    block = UNetBlock(2 * width, 4 * width, block, dropout=dropout)
    block = UNetBlock(width, 2 * width, block)
    return UNetBlock(3, width, block, outermost=True)


class UNetByHand(nn.Module):
    """The same idea with a forward that loops over lists of layers and functional activations."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList()
        self.norms = nn.ModuleList()
        for level, (a, b) in enumerate(pairwise(widths[::-1])):
            self.ups.append(nn.ConvTranspose2d(a if level == 0 else 2 * a, b, 4, 2, 1))
            self.norms.append(nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = F.leaky_relu(down(x), 0.2)
            skips.append(x)
        skips.pop()
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = norm(up(torch.relu(x)))
            if skips:
                x = torch.cat((x, skips.pop()), dim=1)
        return x.tanh()


class ResBlock1d(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], norm: Callable[..., Any]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            norm(nn.Conv1d(channels, channels, kernel, 1, dilation=d, padding=d * (kernel - 1) // 2)) for d in dilations
        )
        self.convs2 = nn.ModuleList(
            norm(nn.Conv1d(channels, channels, kernel, 1, padding=(kernel - 1) // 2)) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for c1, c2 in zip(self.convs1, self.convs2, strict=True):
            y = F.leaky_relu(x, SLOPE)
            y = c1(y)
            y = F.leaky_relu(y, SLOPE)
            y = c2(y)
            x = y + x
        return x


class HiFiGAN(nn.Module):
    """The upsampling stack of a vocoder: weight-normed 1-D convolutions, functional leaky ReLU, sums in place."""

    def __init__(self, norm: Callable[..., Any] = old_weight_norm, width: int = 16, mels: int = 6) -> None:
        super().__init__()
        self.num_kernels = 2
        self.upsample = ((8, 16), (4, 8), (2, 4))
        self.conv_pre = norm(nn.Conv1d(mels, width, 7, 1, padding=3))
        self.ups = nn.ModuleList(
            norm(nn.ConvTranspose1d(width >> i, width >> (i + 1), k, s, padding=(k - s) // 2))
            for i, (s, k) in enumerate(self.upsample)
        )
        self.resblocks = nn.ModuleList(
            ResBlock1d(width >> (i + 1), k, (1, 3), norm) for i in range(len(self.ups)) for k in (3, 5)
        )
        self.conv_post = norm(nn.Conv1d(width >> len(self.ups), 1, 7, 1, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i in range(len(self.upsample)):
            x = F.leaky_relu(x, SLOPE)
            x = self.ups[i](x)
            xs = None
            for j in range(self.num_kernels):
                if xs is None:
                    xs = self.resblocks[i * self.num_kernels + j](x)
                else:
                    xs += self.resblocks[i * self.num_kernels + j](x)
            x = xs / self.num_kernels
        x = F.leaky_relu(x)
        x = self.conv_post(x)
        return torch.tanh(x)


class CycleGAN(nn.Module):
    """A ResNet generator: down, residual blocks, up, with InstanceNorm or BatchNorm."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.InstanceNorm2d, width: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), norm(width), nn.ReLU(True)]
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU(True)]
        layers += [Residual(2 * width, norm)]
        layers += [nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), norm(width), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Residual(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            norm(width),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


# name -> (the network, shape of its input, number of chains that fuse() has to find)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "DCGAN": (DCGAN, (4, 10, 1, 1), 1),
    "U-Net": (unet, (3, 3, 32, 32), 4),
    "U-Net by hand": (UNetByHand, (3, 3, 16, 16), 3),
    "HiFi-GAN": (HiFiGAN, (2, 6, 5), 3),
    "HiFi-GAN, new weight_norm": (lambda: HiFiGAN(new_weight_norm), (2, 6, 5), 3),
    "CycleGAN": (CycleGAN, (2, 3, 12, 12), 0),
    "CycleGAN, BatchNorm": (lambda: CycleGAN(nn.BatchNorm2d), (2, 3, 12, 12), 4),
}


def make(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network in float64 and a batch for it."""
    kind, shape, _ = NETWORKS[name]
    torch.manual_seed(seed)
    network = kind().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.2)
    return network, torch.randn(shape, dtype=torch.float64)


def batches(x: Tensor) -> Iterator[Tensor]:
    """Other batches like x, without end."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(x.shape, dtype=x.dtype, generator=generator)
