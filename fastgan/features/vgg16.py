"""VGG16 (Simonyan and Zisserman 2015, arXiv:1409.1556) for inference, with the parameter names of torchvision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.features.layers import filled
from fastgan.features.weights import VGG16 as PUBLISHED
from fastgan.features.weights import obtain

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on the scale 0 to 1
TAPS = {"fc2": 4096, "fc2_relu": 4096}
WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: halve by maximum
LAST_CONVOLUTION = 29  # layers up to it, without its ReLU
LAYERS = (3, 8, 15, 22, 29)  # ReLU after the last convolution of each resolution
CHANNELS = (64, 128, 256, 512, 512)


def trunk() -> nn.Sequential:
    """[N, 3, H, W] -> [N, 512, H / 32, W / 32]; numbered as torchvision's `features`."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """x: [N, 3, 224, 224], normalised by MEAN and STD -> "fc2" [N, 4096], or "fc2_relu" behind its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        # Dropout takes numbers 2 and 5 of torchvision's classifier; number 6, to the classes, is not needed.
        self.classifier = nn.ModuleDict({"0": nn.Linear(512 * 7 * 7, 4096), "3": nn.Linear(4096, 4096)})

    def forward(self, x: Tensor, tap: str = "fc2_relu") -> Tensor:
        maps = F.adaptive_avg_pool2d(self.features(x), (7, 7)).flatten(1)
        out: Tensor = self.classifier["3"](F.relu(self.classifier["0"](maps)))
        return out.relu() if tap == "fc2_relu" else out


def load_vgg16(state: Mapping[str, Tensor], source: str) -> VGG16:
    """The network with the weights `state`, named as torchvision's. Raises FastganError where one does not fit."""
    if any(name.startswith("fc.") for name in state):
        raise FastganError(f"{source}: these are the weights of another network, expected VGG16 ({SIDE} pixels)")
    with torch.device("meta"):
        network = VGG16()
    return filled(network, state, source)


class VGG16Maps(nn.Module):
    """x: [N, 1 or 3, H, W] in [-1, 1], at least 16 pixels -> the last convolution's values, over 12.75, [N, 512, h, w].

    What the "VGG loss" of super-resolution compares (Ledig et al. 2017, arXiv:1609.04802, 2.2.1), there of VGG19.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: VGG16) -> None:
        super().__init__()
        self.features = network.features[:LAST_CONVOLUTION]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        normalised = ((x.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        maps: Tensor = self.features(normalised)
        return maps / 12.75


def open_vgg16_maps(file: str | None) -> VGG16Maps:
    """VGG16Maps with the weights in `file`, or those in the cache folder. Raises FastganError where there are none."""
    found = obtain(PUBLISHED, file)
    return VGG16Maps(load_vgg16(found.tensors, found.source))
