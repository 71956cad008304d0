"""Critics drawn at random from the operations that the sweep knows: 6 of them, or 200 under FASTGAN_TESTS=all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from sweep.compare import EVERYTHING, F64, LOSSES, PENALTIES, assert_exact, images, spread
from sweep.rules import Op
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

Shape: TypeAlias = tuple[int, ...]

LARGEST = 320
"""Numbers per sample, at most, between two layers."""


class Merged(nn.Module):
    """Two branches from one input: their sum, maximum or concatenation."""

    def __init__(self, first: nn.Module, second: nn.Module, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = first, second, how

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.how == "add":
            return (a + b) * 0.7
        if self.how == "max":
            return torch.maximum(a, b)
        return torch.cat([a, b], 1)

    def extra_repr(self) -> str:
        return self.how


class Map(nn.Module):
    """A learned tensor of the shape of a sample, added or multiplied."""

    def __init__(self, shape: Shape, how: str) -> None:
        super().__init__()
        self.map, self.how = nn.Parameter(torch.randn(shape)), how

    def forward(self, x: Tensor) -> Tensor:
        return x * self.map if self.how == "times" else self.map - x

    def extra_repr(self) -> str:
        return self.how


class Function(Op):
    """A function of activations alone, with a name."""

    def __init__(self, name: str, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda _, x: body(x))
        self.name = name

    def extra_repr(self) -> str:
        return self.name


ANYWHERE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_": lambda x: F.leaky_relu_(x + 0.1, 0.3),
    "clamp": lambda x: x.clamp(-0.8, 1.1),
    "relu6": lambda x: F.relu6(3 * x),
    "abs": lambda x: abs(x) - 0.2,
    "affine": lambda x: 1.5 - 0.5 * x,
    "where": lambda x: torch.where(x > 0.3, 0.5 * x, x),
    "negated": lambda x: -x,
    "halves swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "rolled": lambda x: x.roll(1, 1),
    "double": lambda x: x.to(torch.float64) / 0.9,
}
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "max_pool overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "avg_pool padded": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 4), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "padded": lambda x: F.pad(x, (1, 0, 2, 1), value=0.4),
    "reflected": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicated": lambda x: F.pad(x, (0, 2, 1, 0), mode="replicate"),
    "unshuffled": lambda x: F.pixel_unshuffle(x, 2),
    "shuffled": lambda x: F.pixel_shuffle(x, 2),
    "transposed": lambda x: x.transpose(2, 3),
    "strided": lambda x: x[:, :, ::2, 1:],
    "flipped": lambda x: x.flip(2) + x,
    "row maxima": lambda x: x.amax(3),
    "columns": lambda x: x.mean(2),
    "flattened": lambda x: x.flatten(2),
    "features": lambda x: x.flatten(1),
}
SEQUENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool1d": lambda x: F.max_pool1d(x, 2, ceil_mode=True),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 3, 2, 1),
    "linear upsampling": lambda x: F.interpolate(x, scale_factor=1.5, mode="linear"),
    "reflected": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "permuted": lambda x: x.transpose(1, 2),
    "square": lambda x: x.unsqueeze(2),
    "sum over time": lambda x: x.sum(2),
    "features": lambda x: x.flatten(1),
}
FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "a sequence": lambda x: x[:, None],
    "maxout": lambda x: torch.stack([x, x.flip(1)], 2).amax(2),
    "residual": lambda x: x + F.relu(x.roll(1, 1)),
}


@dataclass(frozen=True)
class Plan:
    """A chain of layers, and the shape behind it, per sample."""

    layers: list[nn.Module]
    shape: Shape


def after(layer: nn.Module, shape: Shape) -> Shape | None:
    """The shape behind a layer, per sample; None where the layer cannot be, or is too large."""
    try:
        with torch.no_grad():
            result = layer(torch.zeros(2, *shape, dtype=F64))
    except (RuntimeError, ValueError, IndexError):
        return None
    fits = len(result) == 2 and result.ndim > 1 and 0 < result[0].numel() <= LARGEST
    return tuple(result.shape[1:]) if fits else None


@st.composite
def convolution(draw: st.DrawFn, shape: Shape) -> nn.Module:
    """A convolution, transposed convolution or linear layer for the shape, with or without bias and norm."""
    channels, bias = shape[0], draw(st.booleans())
    width = draw(st.sampled_from([2, 4, 6]))
    if len(shape) == 1:
        layer: nn.Module = nn.Linear(channels, width, bias=bias)
    else:
        two = len(shape) == 3
        groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == width % g == 0]))
        size, stride = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        dilation = draw(st.integers(1, 2)) if size > 1 else 1
        kind = draw(st.sampled_from(["convolution"] * 3 + ["transposed", "over the last dimension"]))
        if kind == "over the last dimension":
            layer = nn.Linear(shape[-1], width, bias=bias)
        elif kind == "transposed":
            kind_of = nn.ConvTranspose2d if two else nn.ConvTranspose1d
            more = draw(st.integers(0, stride - 1))
            layer = kind_of(channels, width, size, stride, size // 2, more, groups=groups, bias=bias)
        else:
            kind_of = nn.Conv2d if two else nn.Conv1d
            padding = draw(st.integers(0, 2))
            mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate"]))
            layer = kind_of(channels, width, size, stride, padding, dilation, groups, bias, mode)
    norm = draw(st.sampled_from([None, None, None, spectral_norm, weight_norm]))
    return layer if norm is None else norm(layer)


@st.composite
def layer(draw: st.DrawFn, shape: Shape, depth: int) -> nn.Module:
    """Any layer for the shape, in float64."""
    functions = ANYWHERE | {1: FEATURES, 2: SEQUENCES, 3: IMAGES}[len(shape)]
    kinds = ["weights", "weights", "function", "function", "function", "map", "prelu", "dropout"]
    kind = draw(st.sampled_from(kinds + ["branches", "branches"] * (depth > 0)))
    if kind == "weights":
        return draw(convolution(shape)).double()
    if kind == "function":
        name = draw(st.sampled_from(sorted(functions)))
        return Function(name, functions[name])
    if kind == "map":
        return Map(shape, draw(st.sampled_from(["times", "minus"]))).double()
    if kind == "prelu":
        return nn.PReLU(shape[0] if draw(st.booleans()) else 1).double()
    if kind == "dropout":
        return nn.Dropout(0.2)
    first, second = (nn.Sequential(*draw(layers(shape, depth - 1, 1, 3)).layers) for _ in range(2))
    if draw(st.booleans()):
        second = nn.Identity()
    one, other = after(first, shape), after(second, shape)
    if one == other:
        return Merged(first, second, draw(st.sampled_from(["add", "cat", "max"])))
    if one is not None and other is not None and one[1:] == other[1:]:
        return Merged(first, second, "cat")
    return first


@st.composite
def layers(draw: st.DrawFn, shape: Shape, depth: int, least: int, most: int) -> Plan:
    """A chain of layers that fit behind one another."""
    chain: list[nn.Module] = []
    for _ in range(draw(st.integers(least, most))):
        candidate = draw(layer(shape, depth))
        behind = after(candidate, shape)
        if behind is not None:
            chain.append(candidate)
            shape = behind
    return Plan(chain, shape)


@st.composite
def critics(draw: st.DrawFn) -> nn.Module:
    """[N, 3, 6, 6] -> [N] or [N, 1]."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    first = nn.Conv2d(3, 4, 3, padding=1).double() if draw(st.booleans()) else nn.Identity()
    plan = draw(layers(after(first, (3, 6, 6)) or (), 2, 2, 8))
    features = torch.Size(plan.shape).numel()
    head: list[nn.Module] = [nn.Flatten(), nn.Linear(features, 1)]
    if draw(st.booleans()):
        head = [nn.Flatten(), nn.Linear(features, 5), nn.LeakyReLU(0.2), nn.Linear(5, 1), nn.Flatten(0)]
    return spread(nn.Sequential(first, *plan.layers, *head), draw(st.integers(0, 100)))


@pytest.mark.timeout(1200)
@settings(
    max_examples=200 if EVERYTHING else 6,
    derandomize=not EVERYTHING,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@given(
    critic=critics(),
    penalty=st.sampled_from(sorted(PENALTIES)),
    loss=st.sampled_from(sorted(LOSSES)),
    count=st.sampled_from([4, 3, 2, 6, 1]),
)
def test_random_critics(critic: nn.Module, penalty: str, loss: str, count: int):
    note(repr(critic))
    options = PENALTIES[penalty] | {"epsilon": torch.linspace(0.1, 1.0, count, dtype=F64)}
    expect = "sweep" if PENALTIES[penalty] else None
    real, fake = images(count, 1, (3, 6, 6)), images(count, 2, (3, 6, 6))
    assert_exact(lambda: copy.deepcopy(critic), real, fake, LOSSES[loss], expect=expect, **options)
