"""Calls of the Triton kernels with all their arguments, for launches and for ahead-of-time compilation alike.

x [N, H, W, Cin], y [N, s H, s W, Cout], weights [Cin, kh, kw, Cout]: contiguous, of one type. Tensors may be on the
"meta" device: a call is only an object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-untyped]

from fastgan.kernels.conv_transpose_bn_act import descriptors, image, parts, pointers
from fastgan.kernels.conv_transpose_bn_act.phases import (
    MULTIPROCESSORS,
    SMALL_SHARED,
    Box,
    Phases,
    Tile,
    box_of,
    patch_of,
    power_of_two,
    product_tile,
)

LARGE = 2**31  # from this many numbers on, element numbers need 64 bits
IMAGE_COLUMNS = 32  # phases times output channels that the image layer's kernel takes
SUM_BLOCK = 1024


@dataclass(frozen=True)
class Prologue:
    """act((x - center) * scale + shift) per input channel, applied to x before the zero padding.

    center, scale, shift: [Cin] float32 (float64 for float64), or None: the activation alone
    """

    center: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    act: int = 0
    slope: float = 0.0

    def arguments(self) -> dict[str, Any]:
        return {"center": self.center, "scale": self.scale, "shift": self.shift}

    @property
    def is_none(self) -> bool:
        return self.center is None and self.act == 0


@dataclass(frozen=True)
class How:
    """Which kernel: the GPU's compute capability; by descriptors where that is possible; and a tile, or None: chosen.

    For weight gradients the tile is [Cin, Cout, pixels]. parts: of the sum over pixels; None: chosen.
    """

    capability: int
    descriptors: bool
    tile: Tile | None = None
    parts: int | None = None

    @property
    def roomy(self) -> bool:
        return self.capability not in SMALL_SHARED


@dataclass(frozen=True)
class Call:
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    def launch(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.options)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def arithmetic(x: Tensor) -> dict[str, Any]:
    """ACC and PRECISION: float32 is multiplied as TF32 where PyTorch's convolutions are allowed to."""
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return {"ACC": tl.float64 if x.dtype == torch.float64 else tl.float32, "PRECISION": "tf32" if tf32 else "ieee"}


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, phases: Phases, prologue: Prologue, act: int, slope: float,
    statistics: bool, how: How,
) -> tuple[Call, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The call, y, and with `statistics` what merge takes: [tiles, 3, Cout] and [tiles]."""
    n, h, w, cin = x.shape
    cout = weight.shape[3]
    # Prologue, accumulator and statistics of a tile of 128 x 256 are too many registers elsewhere
    widest = how.capability == 90
    tile = how.tile or product_tile(n * h * w, cout, cin, phases.count, x.element_size(), widest, how.roomy)
    y = x.new_empty(n, h * phases.stride[0], w * phases.stride[1], cout)
    box = box_of(tile.m, h, w) if how.descriptors and describable(x, weight) else None
    blocks = box.count(n, h, w) if box else -(-n * h * w // tile.m)
    made = counts = None
    if statistics:
        made = x.new_empty(blocks * phases.count, 3, cout, dtype=accumulator(x.dtype))
        counts = x.new_empty(len(made), dtype=torch.int32)
    arguments = {
        "x": x, "weight": weight, "bias": bias, **prologue.arguments(), "y": y, "statistics": made, "counts": counts,
        "H": h, "W": w, "CIN": cin, "COUT": cout, "slope_in": float(prologue.slope), "slope_out": float(slope),
        **phases.constants(), "PROLOGUE": not prologue.is_none, "ACT_IN": prologue.act, "ACT_OUT": act,
        "STATISTICS": statistics, **arithmetic(x), "BN": tile.n, "BK": tile.k,
    }  # fmt: skip
    grid = (blocks * phases.count * -(-cout // tile.n),)
    if box is None:
        arguments |= {"M": n * h * w, "WIDE": wide(x, y), "BM": tile.m}
        return Call(pointers.forward_kernel, grid, arguments, tile.options), y, made, counts
    (sh, sw), (kh, kw) = phases.stride, phases.kernel
    arguments |= {
        "x": descriptor(x, x.shape, (box.n, box.h, box.w, tile.k)),
        "weight": descriptor(weight, (cin, kh * kw, cout), (tile.k, 1, tile.n)),
        "y": descriptor(y, (n * h, sh, w, sw, cout), (box.n * box.h, 1, box.w, 1, tile.n)),
        "N": n, **sides(box),
    }  # fmt: skip
    return Call(descriptors.forward_kernel, grid, arguments, tile.options), y, made, counts


def merge(statistics: Tensor, counts: Tensor, total: int) -> tuple[list[Call], Tensor, Tensor]:
    """The calls, and the mean and biased variance [Cout] in float64 of `total` numbers per channel."""
    tiles, _, cout = statistics.shape
    channels, rows_at_once = 32, 32
    number = min(64, -(-tiles // (2 * rows_at_once)))
    span = -(-tiles // number)
    number = -(-tiles // span)
    sums = statistics.new_empty(number, 2, cout, dtype=torch.float64)
    mean, var = (statistics.new_empty(cout, dtype=torch.float64) for _ in range(2))
    columns = -(-cout // channels)
    add = {
        "statistics": statistics, "counts": counts, "sums": sums, "tiles": tiles, "C": cout, "part": span,
        "BT": rows_at_once, "BC": channels,
    }  # fmt: skip
    end = {
        "statistics": statistics, "sums": sums, "mean": mean, "var": var, "total": total, "parts": number, "C": cout,
        "BT": power_of_two(number), "BC": channels,
    }  # fmt: skip
    options = {"num_warps": 4}
    calls = [
        Call(parts.merge_kernel, (columns, number), add, options),
        Call(parts.moments_kernel, (columns,), end, options),
    ]
    return calls, mean, var


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, phases: Phases, act: int, slope: float, how: How
) -> tuple[Call, Tensor]:
    """The call and y [N, H, W, O] of a convolution of x [N, s H, s W, I] with weight [O, kh, kw, I]."""
    n, wide_h, wide_w, cin = x.shape
    h, w, cout = wide_h // phases.stride[0], wide_w // phases.stride[1], weight.shape[0]
    y = x.new_empty(n, h, w, cout)
    flat = cin < 16
    widest = how.capability in (90, 100)
    tile = how.tile or product_tile(n * h * w, cout, cin, 1, x.element_size(), widest, how.roomy)
    if flat and how.tile is None:  # gathered number by number: more threads for the addresses
        tile = Tile(128, min(128, max(16, power_of_two(cout))), 64 if x.element_size() <= 2 else 32)
    fits = how.descriptors and describable(x, weight, y) and cin % tile.k == 0
    box = box_of(tile.m, h, w) if fits else None
    arguments = {
        "x": x, "weight": weight, "bias": bias, "y": y, "H": h, "W": w, "CIN": cin, "COUT": cout,
        "slope": float(slope), **phases.constants(), "ACT": act, **arithmetic(x), "BN": tile.n, "BK": tile.k,
    }  # fmt: skip
    columns = -(-cout // tile.n)
    if box is None:
        arguments |= {"M": n * h * w, "FLAT": flat, "WIDE": wide(x, y), "BM": tile.m}
        return Call(pointers.convolution_kernel, (-(-n * h * w // tile.m) * columns,), arguments, tile.options), y
    sh, sw = phases.stride
    arguments |= {
        "x": descriptor(x, (n, h, sh, w, sw * cin), (box.n, box.h, 1, box.w, tile.k)),
        "weight": descriptor(weight, (cout, weight[0].numel()), (tile.n, tile.k)),
        "y": descriptor(y, (n * h, w, cout), (box.n * box.h, box.w, tile.n)),
        **sides(box),
    }
    return Call(descriptors.convolution_kernel, (box.count(n, h, w) * columns,), arguments, tile.options), y


def weight_gradient(
    x: Tensor, grad: Tensor, phases: Phases, prologue: Prologue, dtype: torch.dtype, how: How
) -> tuple[list[Call], Tensor]:
    """The calls and the gradient [Cin, kh, kw, Cout], of type `dtype`, for grad [N, s H, s W, Cout]."""
    n, h, w, cin = x.shape
    cout = grad.shape[3]
    kernel = math.prod(phases.kernel)
    flat = cout < 16
    columns = kernel * cout if flat else cout
    tile = how.tile or gradient_tile(cin, columns, x.element_size(), flat)
    fits = how.descriptors and describable(x, grad) and cout % tile.n == 0
    box = box_of(tile.k, h, w) if fits else None
    steps = box.count(n, h, w) if box else -(-n * h * w // tile.k)
    tiles = -(-cin // tile.m) * -(-columns // tile.n) * (1 if flat else kernel)
    number = min(steps, how.parts or max(1, min(32, 2 * MULTIPROCESSORS // tiles, steps // 8)))
    span = -(-steps // number)
    number = -(-steps // span)
    made = x.new_empty(number, cin, *phases.kernel, cout, dtype=accumulator(x.dtype))
    arguments = {
        "x": x, "grad": grad, **prologue.arguments(), "parts": made, "H": h, "W": w, "CIN": cin, "COUT": cout,
        "slope": float(prologue.slope), **phases.constants(), "PROLOGUE": not prologue.is_none, "ACT": prologue.act,
        **arithmetic(x), "BM": tile.m, "BN": tile.n,
    }  # fmt: skip
    if box is None:
        call = Call(
            pointers.weight_gradient_kernel, (tiles, number),
            arguments
            | {"M": n * h * w, "span": span * tile.k, "FLAT": flat, "WIDE": wide(x, grad, made), "BK": tile.k},
            tile.options,
        )  # fmt: skip
    else:
        sh, sw = phases.stride
        arguments |= {
            "x": descriptor(x, x.shape, (box.n, box.h, box.w, tile.m)),
            "grad": descriptor(grad, (n, h, sh, w, sw * cout), (box.n, box.h, 1, box.w, tile.n)),
            "parts": descriptor(made, (number, cin, kernel * cout), (1, tile.m, tile.n)),
            "N": n, "span": span, **sides(box),
        }  # fmt: skip
        call = Call(descriptors.weight_gradient_kernel, (tiles, number), arguments, tile.options)
    if number == 1 and made.dtype == dtype:
        return [call], made[0]
    out = made.new_empty(made.shape[1:], dtype=dtype)
    add = {"parts": made, "out": out, "numel": out.numel(), "count": number, "BLOCK": SUM_BLOCK}
    return [call, Call(pointers.sum_kernel, (-(-out.numel() // SUM_BLOCK),), add, {"num_warps": 4})], out


def gradient_tile(cin: int, columns: int, size: int, flat: bool) -> Tile:
    """[Cin, columns, pixels] of weight_gradient."""
    m, n = (max(16, min(128, power_of_two(c))) for c in (cin, columns))
    if flat:  # gathered number by number: fewer of them, and more threads for the addresses
        return Tile(m, min(n, 64), 32)
    return Tile(m, n, 64 if size <= 2 else 32, 8 if m * n > 8192 else 4)


def is_image(phases: Phases, cout: int) -> bool:
    """Whether `image_layer` is for it: as many columns as one product has, or fewer."""
    return cout <= 4 and phases.count * cout <= IMAGE_COLUMNS and max(phases.taps) <= 2


def image_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, phases: Phases, prologue: Prologue, act: int, slope: float,
    how: How,
) -> tuple[Call, Tensor]:  # fmt: skip
    """As `forward` without statistics, for few output channels. how.tile: pixels of a patch, any, channels."""
    n, h, w, cin = x.shape
    cout = weight.shape[3]
    y = x.new_empty(n, h * phases.stride[0], w * phases.stride[1], cout)
    tile = how.tile or Tile(256, 0, min(64 if x.element_size() <= 2 else 32, max(16, power_of_two(cin))), 8, 2)
    patch = patch_of(phases, tile.m, h, w)
    arguments = {
        "x": x, "weight": weight, "bias": bias, **prologue.arguments(), "y": y, "H": h, "W": w, "CIN": cin,
        "slope_in": float(prologue.slope), "slope_out": float(slope), "COUT": cout, **phases.constants(),
        "PROLOGUE": not prologue.is_none, "ACT_IN": prologue.act, "ACT_OUT": act, **arithmetic(x), "WIDE": wide(x, y),
        "PATCH_H": patch.h, "PATCH_W": patch.w, "INNER_H": patch.inner_h, "INNER_W": patch.inner_w,
        "BT": power_of_two(math.prod(phases.taps)), "BC": max(16, power_of_two(phases.count * cout)), "BK": tile.k,
    }  # fmt: skip
    grid = (n * -(-h // patch.inner_h) * -(-w // patch.inner_w),)
    return Call(image.image_kernel, grid, arguments, tile.options), y


def describable(*tensors: Tensor) -> bool:
    """Whether descriptors can describe tensors [..., channels] and outputs of their type: what TMA requires."""
    return all(t.shape[-1] * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0 for t in tensors)


def descriptor(tensor: Tensor, shape: tuple[int, ...], box: tuple[int, ...]) -> Any:
    """Of a contiguous tensor that is seen as `shape`."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return TensorDescriptor(tensor, list(shape), strides, list(box))


def sides(box: Box) -> dict[str, int]:
    return {"BB": box.n, "BH": box.h, "BW": box.w}


def wide(*tensors: Tensor) -> bool:
    """Whether element numbers need 64 bits, also those of masked rows past the end and before the beginning."""
    return any(t.numel() + 512 * t.shape[-1] + 2 * t[0].numel() >= LARGE for t in tensors)
