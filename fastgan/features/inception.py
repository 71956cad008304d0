"""The Inception-v3 that the Fréchet inception distance is defined on, for inference.

It is Szegedy et al. 2015 (arXiv:1512.00567) as TensorFlow's `inception-2015-12-05` graph has it, which differs from the
network that torchvision trains: 1008 classes; average pooling divides by the number of pixels inside of the image; the
last block pools by the maximum; BatchNorm's eps is 1e-3. Parameters are named as in the converted weights that are
published for it (`Mixed_5b.branch1x1.conv.weight`, `Mixed_5b.branch1x1.bn.running_var`, ...).

Every BatchNorm is folded into its convolution when the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.features.layers import ready, tensor_of

SIDE = 299
CLASSES = 1008
EPSILON = 1e-3
TAPS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": CLASSES, "logits": CLASSES}

Kernel: TypeAlias = int | tuple[int, int]
# One convolution of a block: name in the block, channels out, kernel; with stride 2 and no padding where a 2 follows.
Link: TypeAlias = tuple[str, int, Kernel] | tuple[str, int, Kernel, int]
# One branch: convolutions in a row; a tuple of two in it is a fork, of which both results are concatenated.
Branch: TypeAlias = tuple[Link | tuple[Link, Link], ...]

TALL, WIDE = (7, 1), (1, 7)


def mixed_5(pooled: int) -> tuple[Branch, ...]:
    return (
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        (("branch_pool", pooled, 1),),
    )


def mixed_6(inner: int) -> tuple[Branch, ...]:
    return (
        (("branch1x1", 192, 1),),
        (("branch7x7_1", inner, 1), ("branch7x7_2", inner, WIDE), ("branch7x7_3", 192, TALL)),
        (
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, TALL),
            ("branch7x7dbl_3", inner, WIDE),
            ("branch7x7dbl_4", inner, TALL),
            ("branch7x7dbl_5", 192, WIDE),
        ),
        (("branch_pool", 192, 1),),
    )


MIXED_6A: tuple[Branch, ...] = (
    (("branch3x3", 384, 3, 2),),
    (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
)
MIXED_7A: tuple[Branch, ...] = (
    (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
    (
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, WIDE),
        ("branch7x7x3_3", 192, TALL),
        ("branch7x7x3_4", 192, 3, 2),
    ),
)
MIXED_7: tuple[Branch, ...] = (
    (("branch1x1", 320, 1),),
    (("branch3x3_1", 384, 1), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1)))),
    (
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (("branch_pool", 192, 1),),
)


class Convolution(nn.Module):
    """Convolution with its BatchNorm folded in, then ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out.relu_()


class Mixed(nn.Module):
    """Branches side by side, concatenated; the last one pools: before its 1x1 convolution, or alone with stride 2.

    pool: "average", "maximum" (both of 3x3, stride 1) or "stride" (maximum of 3x3, stride 2, no convolution)
    """

    def __init__(self, channels: int, branches: tuple[Branch, ...], pool: str) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.out = channels if pool == "stride" else 0
        for branch in branches:
            size = channels
            for step in branch:
                fork = step if isinstance(step[0], tuple) else (step,)
                for link in fork:
                    self.add_module(link[0], _convolution(size, link))
                size = sum(link[1] for link in fork)
            self.out += size

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for branch in self.branches:
            y = self._pooled(x) if branch[0][0] == "branch_pool" else x
            for step in branch:
                if isinstance(step[0], tuple):
                    y = torch.cat([self.get_submodule(link[0])(y) for link in step], 1)
                else:
                    y = self.get_submodule(step[0])(y)
            results.append(y)
        if self.pool == "stride":
            results.append(F.max_pool2d(x, 3, 2))
        return torch.cat(results, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "maximum":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _convolution(channels: int, link: Link) -> Convolution:
    _, out, kernel, *stride = link
    if stride:
        return Convolution(channels, out, kernel, stride[0])
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Convolution(channels, out, kernel, 1, (height // 2, width // 2))


class Inception(nn.Module):
    """x: [N, 3, 299, 299], scaled to about [-1, 1] -> one of the taps, [N, d].

    "64", "192", "768" and "2048" are means over the image of the feature maps of so many channels (after the first and
    the second pooling, Mixed_6e and Mixed_7c); "logits_unbiased" are the logits without the bias, which the Inception
    score takes, and "logits" those with it. What lies behind the tap is not computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = Mixed(192, mixed_5(32), "average")
        self.Mixed_5c = Mixed(256, mixed_5(64), "average")
        self.Mixed_5d = Mixed(288, mixed_5(64), "average")
        self.Mixed_6a = Mixed(288, MIXED_6A, "stride")
        self.Mixed_6b = Mixed(768, mixed_6(128), "average")
        self.Mixed_6c = Mixed(768, mixed_6(160), "average")
        self.Mixed_6d = Mixed(768, mixed_6(160), "average")
        self.Mixed_6e = Mixed(768, mixed_6(192), "average")
        self.Mixed_7a = Mixed(768, MIXED_7A, "stride")
        self.Mixed_7b = Mixed(1280, MIXED_7, "average")
        self.Mixed_7c = Mixed(2048, MIXED_7, "maximum")
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor, tap: str = "2048") -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        if tap == "64":
            return x.mean((2, 3))
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        if tap == "192":
            return x.mean((2, 3))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        if tap == "768":
            return x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return x if tap == "2048" else self.logits(x, biased=tap == "logits")

    def logits(self, pooled: Tensor, *, biased: bool = False) -> Tensor:
        """[N, 1008] from tap "2048", [N, 2048]."""
        return F.linear(pooled, self.fc.weight, self.fc.bias if biased else None)


def load_inception(state: Mapping[str, Tensor], source: str) -> Inception:
    """The network with the weights `state`, whose names are as the field has them; `source` names it in messages.

    In fp32 (fp64 where the weights are), channels-last, in evaluation mode, without gradients.
    Raises FastganError where a tensor is missing or has another shape.
    """
    with torch.device("meta"):
        network = Inception()
    folded = {}
    for name, slot in network.state_dict().items():
        expected = list(slot.shape)
        if name.startswith("fc."):
            folded[name] = tensor_of(state, name, expected, source)
        elif name.endswith(".conv.weight"):
            scale, shift = _fold(state, name.removesuffix(".conv.weight"), expected[0], source)
            weight = tensor_of(state, name, expected, source)
            # In fp64, so that folding rounds each weight once.
            folded[name] = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
            folded[name.removesuffix("weight") + "bias"] = shift.to(weight.dtype)
    network.load_state_dict(folded, assign=True)
    return ready(network)


def _fold(state: Mapping[str, Tensor], layer: str, size: int, source: str) -> tuple[Tensor, Tensor]:
    """Scale and shift [size] fp64 that the BatchNorm of `layer` is in inference."""
    weight, bias, mean, variance = (
        tensor_of(state, f"{layer}.bn.{part}", [size], source).double()
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + EPSILON).sqrt()
    return scale, bias - mean * scale
