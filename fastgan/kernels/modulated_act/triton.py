"""The GPU kernels of modulated_act. The mathematics: see __init__.py.

One program per sample and tile of [pixels, channels]; strides tell the layout. Arithmetic in float32. The sums of the
backward pass are stored per block of pixels and added up afterwards in a fixed order: no atomics, the same bits again.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from fastgan.kernels._runtime.aot import AotCase
from fastgan.kernels.masked_act.reference import empty_in_layout, is_channels_last
from fastgan.kernels.modulated_act.reference import CASES

TILE = 2048  # elements of a program: 16 per thread
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OPTIONS = {"num_warps": 4}


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x, scale, noise, strength, bias, grad, out, sums,
    samples, channels, pixels, pixel_stride, channel_stride, noise_stride, slope, gain,
    BACKWARD: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out = a, or BACKWARD: out = dx and sums [blocks of pixels, 3, samples, channels] of these pixels."""
    n, block = tl.program_id(2), tl.program_id(0)
    p = block * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    of_pixel, of_channel = p < pixels, c < channels
    inside = of_pixel[:, None] & of_channel[None, :]
    at = n.to(tl.int64) * channels * pixels + p[:, None] * pixel_stride + c[None, :] * channel_stride
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(scale + n * channels + c, mask=of_channel, other=0.0)
    z = value * factor[None, :]
    if noise is not None:
        drawn = tl.load(noise + n.to(tl.int64) * noise_stride + p, mask=of_pixel, other=0.0)
        z += (drawn * tl.load(strength))[:, None]
    if bias is not None:
        z += tl.load(bias + c, mask=of_channel, other=0.0)[None, :]
    m = tl.where(z > 0, gain, gain * slope)
    if not BACKWARD:
        tl.store(out + at, (z * m).to(out.dtype.element_ty), mask=inside)
    else:
        dz = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * m
        tl.store(out + at, (dz * factor[None, :]).to(out.dtype.element_ty), mask=inside)
        part = sums + (block * 3 * samples + n) * channels + c
        tl.store(part, tl.sum(dz * value, axis=0), mask=of_channel)
        tl.store(part + samples * channels, tl.sum(dz, axis=0), mask=of_channel)
        if noise is not None:
            tl.store(part + 2 * samples * channels, tl.sum(dz * drawn[:, None], axis=0), mask=of_channel)
        else:
            tl.store(part + 2 * samples * channels, tl.zeros([CHANNELS], tl.float32), mask=of_channel)


def launch(
    x: Tensor,
    vectors: list[Tensor | None],
    slope: float,
    gain: float,
    out: Tensor,
    grad: Tensor | None,
    sums: Tensor | None,
) -> None:
    """Runs on the current stream of the device of x: forward into `out`, or with a grad, dx into `out` and `sums`.

    x, out, grad: dense, of one layout;  vectors: scale, noise, strength, bias in float32
    """
    if x.numel() == 0:
        if sums is not None:
            sums.zero_()
        return
    arguments, grid = _arguments(x, vectors, slope, gain, out, grad)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _kernel[grid](**arguments, **OPTIONS)
    if sums is not None:
        torch.sum(arguments["sums"], 0, out=sums)


def _arguments(
    x: Tensor, vectors: list[Tensor | None], slope: float, gain: float, out: Tensor, grad: Tensor | None
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    samples, channels = x.shape[:2]
    pixels, last = x.shape[2] * x.shape[3], is_channels_last(x)
    wide = min(triton.next_power_of_2(channels), 128) if last else 4
    high = min(TILE // wide, max(16, triton.next_power_of_2(pixels)))
    grid = (triton.cdiv(pixels, high), triton.cdiv(channels, wide), samples)
    scale, noise, strength, bias = vectors
    sums = None if grad is None else x.new_empty((grid[0], 3, samples, channels), dtype=torch.float32)
    shared = noise is not None and noise.shape[0] != samples
    return {
        "x": x, "scale": scale, "noise": noise, "strength": strength, "bias": bias, "grad": grad, "out": out,
        "sums": sums, "samples": samples, "channels": channels, "pixels": pixels,
        "pixel_stride": channels if last else 1, "channel_stride": 1 if last else pixels,
        "noise_stride": 0 if shared else pixels, "slope": float(slope), "gain": float(gain),
        "BACKWARD": grad is not None, "PIXELS": high, "CHANNELS": wide,
    }, grid  # fmt: skip


def aot_cases() -> list[AotCase]:
    """Both passes of a layer for every case, and modulation alone."""
    cases = []
    for name, (shape, channels_last) in CASES.items():
        if 0 in shape:
            continue
        n, c, h, w = shape
        for dtype in (torch.float32, torch.bfloat16):
            x = empty_in_layout(torch.empty(shape, dtype=dtype, device="meta"), channels_last)
            scale, noise, strength, bias = (
                x.new_empty(s, dtype=torch.float32) for s in ((n, c), (n, 1, h, w), (), (c,))
            )
            layer: list[Tensor | None] = [scale, noise, strength, bias]
            alone: list[Tensor | None] = [scale, None, None, None]
            passes = {"layer": (layer, None), "layer, backward": (layer, x), "modulate": (alone, None)}
            for what, (vectors, grad) in passes.items():
                arguments, _ = _arguments(x, vectors, 0.2, 2**0.5, x, grad)
                cases.append(AotCase("modulated_act", f"{what}: {name}, {TYPES[dtype]}", _kernel, arguments, OPTIONS))
    return cases
