"""What the Triton kernels of the transposed convolution share: prologue, activations, statistics of a tile.

ACT is a code of fastgan.kernels.activations; ACC the type of the arithmetic, tl.float32 (tl.float64 for float64).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# Sizes that are not compiled in, not even whether they are multiples of 16: one kernel serves maps of all sizes
SIZES = ["N", "H", "W", "M", "span", "tiles", "part", "total", "parts", "count"]


@triton.jit
def activation(z, slope, ACT: tl.constexpr):
    """act(z). NaN stays NaN."""
    if ACT == 1:
        z = tl.where(z <= 0, 0.0, z)
    elif ACT == 2:
        z = tl.where(z > 0, z, z * slope)
    elif ACT == 3:  # the series near 0, where the difference would cancel; exp may overflow to infinity: 1 then
        z2 = z * z
        series = z * (1 + z2 * (-1 / 3 + z2 * (2 / 15 - z2 * (17 / 315))))
        z = tl.where(z2 < 0.04, series, 1 - 2 / (1 + tl.exp(2 * z)))
    elif ACT == 4:
        z = 1 / (1 + tl.exp(-z))
    elif ACT == 5:
        z = z / (1 + tl.exp(-z))
    elif ACT == 6:
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def prologue(x, there, center, scale, shift, channel, C, slope, ACT: tl.constexpr, ACC: tl.constexpr):
    """act((x - center) * scale + shift) per channel, in the type of x, and 0 where not `there`.

    x: [rows, channels]; there: of the same shape, or of one that extends to it; channel: [channels]
    center, scale, shift: [C], or all None
    """
    z = x.to(ACC)
    if center is not None:
        exists = channel < C
        z = z - tl.load(center + channel, mask=exists, other=0.0)[None, :]
        z = z * tl.load(scale + channel, mask=exists, other=0.0)[None, :]
        z = z + tl.load(shift + channel, mask=exists, other=0.0)[None, :]
    z = activation(z, slope, ACT)
    return tl.where(there, z, 0.0).to(x.dtype)


@triton.jit
def finish(acc, bias, channel, C, slope, ACT: tl.constexpr):
    """act(acc + bias) of an accumulator [rows, channels]; bias [C] or None."""
    if bias is not None:
        acc = acc + tl.load(bias + channel, mask=channel < C, other=0.0)[None, :].to(acc.dtype)
    return activation(acc, slope, ACT)


@triton.jit
def write_statistics(y, valid, statistics, counts, tile, channel, C, first, ACC: tl.constexpr):
    """Mean and sum of squared differences (M2) of the valid rows of y [rows, channels], to statistics[tile].

    y: as it is stored, rounded; statistics: [tiles, 3, C], the mean in two parts: rounded, and what is missing, for one
    number of this type would lose the deviation when it is small beside the mean; counts: [tiles], written by `first`
    """
    count = tl.sum(valid.to(tl.int32), axis=0)
    mean = tl.sum(tl.where(valid[:, None], y.to(ACC), 0.0), axis=0) / count
    off = tl.where(valid[:, None], y.to(ACC) - mean[None, :], 0.0)
    rest = tl.sum(off, axis=0) / count
    m2 = tl.sum(off * off, axis=0) - count * rest * rest
    at = statistics + tile.to(tl.int64) * 3 * C + channel
    tl.store(at, mean, mask=channel < C)
    tl.store(at + C, rest, mask=channel < C)
    tl.store(at + 2 * C, m2, mask=channel < C)
    tl.store(counts + tile, count, mask=first)


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(statistics, counts, sums, tiles, C, part, BT: tl.constexpr, BC: tl.constexpr):
    """Program (j, i) adds up tiles i * part ... of statistics [tiles, 3, C] into sums [parts, 2, C], both float64.

    The sums are those of the deviations, and of their squares, from a number near the mean: the mean of tile 0.
    """
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    exists = channel < C
    about = tl.load(statistics + channel, mask=exists, other=0.0).to(tl.float64)
    first = tl.zeros((BT, BC), tl.float64)
    second = tl.zeros((BT, BC), tl.float64)
    start = tl.program_id(1) * part
    for at in range(0, part, BT):
        tile = start + at + tl.arange(0, BT)
        there = (tile < tiles) & (at + tl.arange(0, BT) < part)
        both = there[:, None] & exists[None, :]
        count = tl.load(counts + tile, mask=there, other=0).to(tl.float64)[:, None]
        here = statistics + tile.to(tl.int64)[:, None] * 3 * C + channel[None, :]
        mean = tl.load(here, mask=both, other=0.0).to(tl.float64)
        rest = tl.load(here + C, mask=both, other=0.0).to(tl.float64)
        m2 = tl.load(here + 2 * C, mask=both, other=0.0).to(tl.float64)
        off = (mean - about[None, :]) + rest
        first += count * off
        second += m2 + count * off * off
    to = sums + tl.program_id(1).to(tl.int64) * 2 * C + channel
    tl.store(to, tl.sum(first, axis=0), mask=exists)
    tl.store(to + C, tl.sum(second, axis=0), mask=exists)


@triton.jit(do_not_specialize=SIZES)
def moments_kernel(statistics, sums, mean, var, total, parts, C, BT: tl.constexpr, BC: tl.constexpr):
    """mean and biased var [C], float64, of `total` numbers per channel, from sums [parts, 2, C] of merge_kernel."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    exists = channel < C
    part = tl.arange(0, BT)
    both = (part < parts)[:, None] & exists[None, :]
    here = sums + part[:, None] * 2 * C + channel[None, :]
    first = tl.sum(tl.load(here, mask=both, other=0.0), axis=0) / total
    second = tl.sum(tl.load(here + C, mask=both, other=0.0), axis=0) / total
    about = tl.load(statistics + channel, mask=exists, other=0.0).to(tl.float64)
    spread = second - first * first
    tl.store(mean + channel, about + first, mask=exists)
    tl.store(var + channel, tl.where(spread < 0, 0.0, spread), mask=exists)  # NaN stays
