"""Convolutions of 4x4 with stride 2 and of 3x3 with stride 1 on CPUs, with fewer multiplications than products.

`convolution` and `convolution_backward` have the arguments of aten's operations of these names and stand for them.
Each direction goes by minimal filtering where that is faster (csrc/winograd.h; Winograd 1980; Lavin and Gray 2016,
arXiv:1509.09308), and to the library else. The map with fewer pixels is called small, the other one large; of 3x3,
where both have as many, that of the output small:

    down      small = convolution of large, or the input gradient of the transposed convolution
    up        large = transposed convolution of small, or the input gradient of the convolution
    weight    the weight gradient of either

Tiles of 2x2 outputs take 9/16 (4x4) and 4/9 (3x3) of the multiplications and round as the library's convolutions do;
those of 4x4 outputs take 25/64 and 1/4, and round two to seven times as much: 1e-6 to 4e-6 of the size of the result.
Types: float32; whatever else is the library's. x, weight and results are channels-last in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION, choose, register, scratch

aten = torch.ops.aten

DOWN, UP, WEIGHT = WAYS = range(3)  # as WinogradWay in csrc/winograd.h
STRIDES = {4: 2, 3: 1}  # of a kernel
LANES, LEAST_CHANNELS = 16, 32
TILES = 4, 2
# What the transform of a weight takes, in tiles: an element of it costs as much as that many of its products.
WEIGHT_TRANSFORM = 64
# The gain from which on it is faster. The library's weight gradients are far slower where pixels are few.
LEAST_GAIN = {DOWN: 1.1, UP: 1.1, WEIGHT: 0.3}


@dataclass(frozen=True)
class Filtering:
    """A convolution that can be done so.

    small: [N, D, H, W] -> D, large: [N, C, s H, s W] -> C, weight: [D, C, kernel, kernel]
    """

    samples: int
    height: int
    width: int
    small: int
    large: int
    kernel: int

    @property
    def stride(self) -> int:
        return STRIDES[self.kernel]

    def tile(self, way: int) -> int:
        """The side of a tile of outputs, by a rule that knows no clock; 0 where the library is faster.

        The gain is that of multiplications: outputs times taps, over points times tiles.
        """
        taps = self.kernel // self.stride
        gains: dict[int, float] = {}
        for tile in TILES:
            tiles = self.samples * -(-self.height // tile) * -(-self.width // tile)
            plain = self.samples * self.height * self.width * taps**2
            gains[tile] = plain / ((tile + taps - 1) ** 2 * (tiles + WEIGHT_TRANSFORM))
        best = max(TILES, key=gains.__getitem__)
        return best if gains[best] >= LEAST_GAIN[way] else 0

    @property
    def faster(self) -> dict[int, bool]:
        """Which of the ways are."""
        return {way: self.tile(way) > 0 for way in WAYS}


NOWHERE = dict.fromkeys(WAYS, False)


def filtering(
    small: Sequence[int], large: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, dtype: torch.dtype,
) -> Filtering | None:  # fmt: skip
    """By the shapes of the small map, of the large one and of the weight; None for what cannot be done so."""
    if len(small) != 4 or dtype != torch.float32 or groups != 1 or 0 in small:
        return None
    kernel = weight[2]
    step = STRIDES.get(kernel)
    if step is None or weight[3] != kernel or any(s != step for s in stride):
        return None
    if any(p != 1 for p in padding) or any(d != 1 for d in dilation):
        return None
    if any(n != step * m for n, m in zip(large[2:], small[2:], strict=True)):
        return None
    if any(c % LANES or c < LEAST_CHANNELS for c in weight[:2]):
        return None
    native = choose("conv_transpose_bn_act", torch.device("cpu")).native
    if not native or not EXTENSION.module.winograd_here():
        return None
    (count, _, height, width), (narrow, wide) = small, weight[:2]
    return Filtering(count, height, width, narrow, wide, kernel)


# ---- the three ways


def down(large: Tensor, weight: Tensor, how: Filtering, tile: int) -> Tensor:
    """The small map [N, D, H, W]."""
    large, weight = channels_last(large), channels_last(weight)
    small = new_map(large, how.samples, how.small, how.height, how.width)
    _run(how, tile, DOWN, small, large, weight)
    return small


def up(small: Tensor, weight: Tensor, how: Filtering, tile: int) -> Tensor:
    """The large map [N, C, s H, s W]."""
    small, weight = channels_last(small), channels_last(weight)
    large = new_map(small, how.samples, how.large, how.stride * how.height, how.stride * how.width)
    _run(how, tile, UP, small, large, weight)
    return large


def weight_gradient(small: Tensor, large: Tensor, how: Filtering, tile: int) -> Tensor:
    """[D, C, kernel, kernel], of which one map is the input and the other one the gradient of the output."""
    small, large = channels_last(small), channels_last(large)
    weight = new_map(small, how.small, how.large, how.kernel, how.kernel)
    _run(how, tile, WEIGHT, small, large, weight)
    return weight


def _run(how: Filtering, tile: int, way: int, small: Tensor, large: Tensor, weight: Tensor) -> None:
    sizes = how.samples, how.height, how.width, how.small, how.large
    conv, threads = EXTENSION.module.Winograd(sizes, how.kernel, tile), torch.get_num_threads()
    room = scratch(conv.scratch(way, threads), torch.float32)
    EXTENSION.module.winograd_cpu(
        conv, way, small.data_ptr(), large.data_ptr(), weight.data_ptr(), room.data_ptr(), threads
    )


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with its channels next to each other; itself, and no view, where they are.

    Where C or H W is 1, strides alone do not tell.
    """
    rows = x.permute(0, 2, 3, 1)
    return x if rows.is_contiguous() else rows.contiguous().permute(0, 3, 1, 2)


def new_map(like: Tensor, count: int, channels: int, height: int, width: int) -> Tensor:
    """Memory for [count, channels, height, width], channels-last, and no view, so that it can be changed in place."""
    size = count, channels, height, width
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


# ---- instead of the library's operations


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """As aten.convolution of CPU tensors."""
    geometry = stride, padding, dilation, transposed, output_padding, groups
    how = filtering_of(x, weight, *geometry)
    tile = 0 if how is None else how.tile(UP if transposed else DOWN)
    if how is None or not tile:
        made: Tensor = aten.convolution(x, weight, bias, *geometry)
        return made
    made = (up if transposed else down)(x, weight, how, tile)
    return made if bias is None else made.add_(bias.view(-1, 1, 1))


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """As aten.convolution_backward of CPU tensors: dx, dweight, dbias, None for those that are not needed."""
    geometry = stride, padding, dilation, transposed, output_padding, groups
    how = filtering_of(x, weight, *geometry)
    if how is None:
        made: tuple[Tensor | None, ...] = aten.convolution_backward(grad, x, weight, bias_sizes, *geometry, needs)
        return made[0], made[1], made[2]
    dx = dweight = dbias = None
    tile = how.tile(DOWN if transposed else UP)
    if needs[0] and tile:
        dx = (down if transposed else up)(grad, weight, how, tile)
    tile = how.tile(WEIGHT)
    if needs[1] and tile:
        small, large = (x, grad) if transposed else (grad, x)
        dweight = weight_gradient(small, large, how, tile)
    rest = [needs[0] and dx is None, needs[1] and dweight is None, needs[2]]
    if any(rest[:2]):
        made = aten.convolution_backward(grad, x, weight, bias_sizes, *geometry, rest)
        dx, dweight = (mine if mine is not None else other for mine, other in zip((dx, dweight), made[:2], strict=True))
        dbias = made[2]
    elif needs[2]:
        dbias = grad.sum((0, 2, 3))
    return dx, dweight, dbias


def filtering_of(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int,
) -> Filtering | None:  # fmt: skip
    """Of the convolution with these arguments of aten's; None for what cannot be done so."""
    if x.device.type != "cpu" or x.dim() != 4 or weight.dtype != x.dtype or any(output_padding):
        return None
    if weight.shape[2] not in STRIDES:
        return None
    other = _other_shape(x, weight, transposed)
    small, large = (x.shape, other) if transposed else (other, x.shape)
    return filtering(small, large, weight.shape, stride, padding, dilation, groups, x.dtype)


def _other_shape(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, int, int, int]:
    """Of the output."""
    step = STRIDES[weight.shape[2]]
    height, width = (n * step if transposed else n // step for n in x.shape[2:])
    return x.shape[0], weight.shape[1 if transposed else 0], height, width


# ---- the same as operations, for graphs: of 4x4 with stride 2 and of 3x3 with stride 1, padding 1, without derivative


def _geometry(kernel: int, transposed: bool) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    return [STRIDES[kernel]] * 2, [1, 1], [1, 1], transposed, [0, 0], 1


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return convolution(channels_last(x), weight, bias, *_geometry(weight.shape[2], transposed))


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return new_map(x, *_other_shape(x, weight, transposed))


def _weight_gradient(small: Tensor, large: Tensor, kernel: int) -> Tensor:
    like = small.new_empty(small.shape[1], large.shape[1], kernel, kernel)
    geometry = _geometry(kernel, transposed=False)
    made = convolution_backward(small, large, like, None, *geometry, [False, True, False])[1]
    assert made is not None
    return channels_last(made)


def _fake_weight_gradient(small: Tensor, large: Tensor, kernel: int) -> Tensor:
    return new_map(small, small.shape[1], large.shape[1], kernel, kernel)


register(
    "filtered_convolution(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor",
    _forward,
    fake=_fake_forward,
)
register(
    "filtered_weight_gradient(Tensor small, Tensor large, int kernel) -> Tensor",
    _weight_gradient,
    fake=_fake_weight_gradient,
)
