"""What the networks from images to images share: normalisations by name, initialisation, noise as dropout masks."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from fastgan.errors import FastganError, suggest

NORMS = ("batch", "instance", "none")


def check_norm(family: str, norm: str, norms: tuple[str, ...] = NORMS) -> None:
    """FastganError unless `norm` is one of `norms`."""
    if norm not in norms:
        raise FastganError(f"{family}: norm {norm!r} is unknown{suggest(norm, norms)}")


def norm_layer(norm: str, channels: int) -> nn.Module | None:
    """The normalisation called `norm`: with learned scale and shift ("batch"), or without ("instance"); else None."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return InstanceNorm() if norm == "instance" else None


class InstanceNorm(nn.Module):
    """x [N, C, H, W] less its mean, over its deviation, both of each map (Ulyanov et al. 2016, arXiv:1607.08022).

    As nn.InstanceNorm2d without parameters, which copies channels-last maps into another order and back.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, x.shape[1], eps=self.eps)


def block(conv: nn.Conv2d | nn.ConvTranspose2d, norm: str, act: nn.Module | None) -> nn.Sequential:
    """(conv, norm, act), without those that are not there."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    normalise = norm_layer(norm, conv.out_channels)
    if normalise is not None:
        layers["norm"] = normalise
    if act is not None:
        layers["act"] = act
    return nn.Sequential(layers)


def initialise(network: nn.Module, deviation: float = 0.02) -> None:
    """Convolutions N(0, 0.02^2), norms N(1, 0.02^2), biases 0. Isola et al. 2017, section 6.2; Zhu et al. 2017, 4."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, deviation)
            nn.init.zeros_(module.bias)


def dropped(x: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Dropout of x [N, C, H, W] by uniform numbers [N, C H W]: those below `rate` are zero, the others grow."""
    count, channels, height, width = x.shape
    kept = (noise.view(count, height, width, channels).permute(0, 3, 1, 2) >= rate).to(x.dtype)
    return x * kept.mul(1 / (1 - rate))


def divisible(family: str, size: int, by: int) -> None:
    """FastganError unless images of `size` pixels can be halved often enough."""
    if size % by or size < by:
        raise FastganError(
            f"{family} needs images whose side is a multiple of {by} pixels, got {size}; set data.size to one, or use "
            "fewer levels"
        )


def concatenated(x: Tensor, other: Tensor | None) -> Tensor:
    """Both along the channels; x alone where there is no other."""
    return x if other is None else torch.cat([x, other], 1)
