"""The GPU kernel of masked_act and apply_mask. The mathematics and the mask: see __init__.py.

One program per block of memory, as a tile [BLOCK / 8, 8] of elements, so that a row is a byte of the mask. Arithmetic
in float32, without fused multiply-add: the bits are those of the other implementations.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from fastgan.kernels._runtime.aot import AotCase
from fastgan.kernels.masked_act.reference import CASES, empty_in_layout, is_channels_last, mask_shape

BLOCK = 2048  # elements of a program: 16 per thread
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x, out, mask, bias, scale, numel, channels, inner, sample, slope,
    APPLY: tl.constexpr, RELU: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Element i gets bias[i // inner % channels], times scale[i // sample] unless scale is None.

    APPLY: apply_mask, else masked_act; WIDE: whether element numbers need 64 bits
    BIAS: "none", or how the channel goes along a row of the tile: "same", "counts up" or "any". Integer division is
    what this kernel would spend its time on; but for the last it is done once per row.
    """
    block = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    lane = tl.arange(0, 8)[None, :]
    byte = block * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    first, exists = byte * 8, byte * 8 < numel  # of a row
    element = first[:, None] + lane
    inside = element < numel
    y = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
    if BIAS == "any":
        addend = tl.load(bias + element // inner % channels, mask=inside, other=0.0)
        if scale is not None:
            addend = tl.load(scale + element // sample, mask=inside, other=0.0) * addend
        y = y + addend
    elif BIAS != "none":
        if BIAS == "same":
            addend = tl.load(bias + first // inner % channels, mask=exists, other=0.0)[:, None]
        else:
            channel = tl.multiple_of(first % channels, 8)
            addend = tl.load(bias + channel[:, None] + lane, mask=exists[:, None], other=0.0)
        if scale is not None:
            addend = tl.load(scale + first // sample, mask=exists, other=0.0)[:, None] * addend
        y = y + addend
    if APPLY:
        bits = tl.load(mask + byte, mask=exists, other=0).to(tl.int32)
        on = ((bits[:, None] >> lane) & 1) != 0
    else:
        on = y > 0
        bits = tl.sum((on & inside).to(tl.int32) << lane, axis=1)
        tl.store(mask + byte, bits.to(tl.uint8), mask=exists)
    if not RELU:
        y = tl.where(on, y, slope * y)
    elif APPLY:
        y = tl.where(on, y, 0.0)
    else:
        y = tl.where(y <= 0, 0.0, y)  # NaN stays
    tl.store(out + element, y.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Tensor, out: Tensor, mask: Tensor, slope: float, bias: Tensor | None, scale: Tensor | None, *, apply: bool
) -> None:
    """Runs on the current stream of the device of x.

    x, out: dense, in the layout that the mask tells, float32, bfloat16 or float16, not empty; may be the same
    mask: written, or with `apply` read;  bias [C], scale [N]: float32
    """
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _kernel[(triton.cdiv(x.numel(), BLOCK),)](**_arguments(x, out, mask, slope, bias, scale, apply), **OPTIONS)


def _arguments(
    x: Tensor, out: Tensor, mask: Tensor, slope: float, bias: Tensor | None, scale: Tensor | None, apply: bool
) -> dict[str, Any]:
    numel = x.numel()
    channels = 1 if bias is None else x.shape[1]
    inner = 1 if mask.dim() == 2 else math.prod(x.shape[2:])
    pattern = "none"
    if bias is not None:
        pattern = "same" if inner % 8 == 0 else "counts up" if inner == 1 and channels % 8 == 0 else "any"
    return {
        "x": x, "out": out, "mask": mask, "bias": bias, "scale": scale,
        "numel": numel, "channels": channels, "inner": inner, "sample": numel // (x.shape[0] if x.dim() else 1),
        "slope": float(slope),
        "APPLY": apply, "RELU": slope == 0, "BIAS": pattern, "WIDE": numel + BLOCK > 2**31, "BLOCK": BLOCK,
    }  # fmt: skip


def aot_cases() -> list[AotCase]:
    """Pass 1 of the sweep, pass 2, which adds nothing, and pass 3, for every case and one of 2^33 elements."""
    cases = []
    shapes = {name: case for name, case in CASES.items() if math.prod(case[0])}
    for name, (shape, channels_last) in {**shapes, "2^33 elements": ((2**17, 64, 32, 32), False)}.items():
        for dtype, slope in ((torch.float32, 0.2), (torch.bfloat16, 0.0)):
            x = empty_in_layout(torch.empty(shape, dtype=dtype, device="meta"), channels_last)
            mask = x.new_empty(mask_shape(x.numel(), is_channels_last(x)), dtype=torch.uint8)
            bias, scale = (x.new_empty(x.shape[d], dtype=torch.float32) if x.dim() > 1 else None for d in (1, 0))
            passes = {"act": (bias, None, False), "apply": (None, None, True), "apply, add": (bias, scale, True)}
            for what, (b, s, apply) in passes.items():
                arguments = _arguments(x, x, mask, slope, b, s, apply)
                cases.append(AotCase("masked_act", f"{what}: {name}, {TYPES[dtype]}", _kernel, arguments, OPTIONS))
    return cases
