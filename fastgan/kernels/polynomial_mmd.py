r"""Squared maximum mean discrepancy with a polynomial kernel, over subsets of two sets: what KID is the mean of.

    k(x, y) = (gamma x·y + coef0)^degree
    out_s = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)        i, j in subset s

(Bińkowski et al. 2018, arXiv:1801.01401, section 4.) x: [n, d], y: [m, d], subsets: [subsets, size] numbers of samples
each, out: [subsets] fp64. A constant taken from all k changes nothing but the rounding.

The library multiplies matrices, subset by subset, or every pair of samples once where subsets share enough of them
(`all_pairs`). On a CPU without AVX-512 fp32 features go in fixed point (csrc/cpu/polynomial_mmd.cpp): with a centre c
and x_i = c + u_i q_i + e_i (fixed_point.py)

    x_i·y_j = c·x_i + c·y_j - c·c + u_i u_j q_i·q_j + O(e)

so that only the product of integers needs pairs. Rounding each feature by up to u_i / 2 moves out_s by about
`rounding`, and the mean over subsets by less; where samples lie so far out, or are so few, that this exceeds PRECISION
of a kernel value, the library multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.fixed_point import integers, is_here, parts_across, parts_within, ranges

ROWS, COLUMNS = 1024, 2048  # kernel values at a time: 8 MB
PRECISION = 3e-9  # of a kernel value, of the mean over subsets
APART = 1.15  # time of a pair subset by subset, over that of one among all pairs

# n samples a side, features, subsets, size: test and benchmark share them
CASES: dict[str, tuple[int, int, int, int]] = {
    "Inception": (10_000, 2048, 100, 1000),
    "pairs come twice": (5000, 2048, 100, 1000),
    "no whole panels": (700, 200, 7, 601),
    "one block": (300, 33, 3, 300),
}


@dataclass(frozen=True)
class Kernel:
    """k(x, y) = (gamma x·y + coef0)^degree"""

    degree: int
    gamma: float
    coef0: float


def polynomial_mmd(x: Tensor, y: Tensor, first: Tensor, second: Tensor, kernel: Kernel) -> Tensor:
    """[subsets] fp64. x: [n, d], y: [m, d] fp32 or fp64, finite; first, second: [subsets, size] int64, size >= 2, each
    subset of different samples."""
    size = first.shape[1]
    within, across = len(x) ** 2 + len(y) ** 2, len(x) * len(y)
    shared = within / 2 + across < APART * 2 * len(first) * size**2
    if _is_fixed_point_here(x, y, shared, len(first)):
        fixed = fixed_point(x, y, kernel, *first.shape)
        if fixed is not None:
            return native(fixed, first, second, kernel, shared)
    # Of a square that is symmetric the library's products take more than half.
    return reference(x, y, first, second, kernel, within / 1.8 + across < 1.1 * 3 * len(first) * size**2)


def reference(x: Tensor, y: Tensor, first: Tensor, second: Tensor, kernel: Kernel, shared: bool = False) -> Tensor:
    """The same by the library's products in the type of x; every pair of samples once where `shared`."""
    if shared:
        return all_pairs(x, y, first, second, kernel)
    return torch.stack([one_subset(x[i], y[j], kernel) for i, j in zip(first, second, strict=True)])


# ---- in fixed point


@dataclass(frozen=True)
class Fixed:
    """Two sets about one centre. values: [n, features] int16;  units: [n] fp32
    base: [2, n] fp32, what pairs within the set and with the other one add to the product, less middle / 2:
        gamma (c·x - c·c / 2 + e·mean partner) + coef0 / 2
    """

    values: tuple[Tensor, Tensor]
    units: tuple[Tensor, Tensor]
    base: tuple[Tensor, Tensor]
    middle: float

    def addresses(self, which: int) -> tuple[int, ...]:
        base = self.base[which]
        return tuple(each.data_ptr() for each in (self.values[which], self.units[which], base[0], base[1]))


def _is_fixed_point_here(x: Tensor, y: Tensor, shared: bool, subsets: int) -> bool:
    """A thread takes whole parts, or subsets: with fewer of them than threads the library is as fast."""
    parts = parts_within(len(x)) + parts_within(len(y)) + parts_across(len(x), len(y)) if shared else subsets
    here = x.dtype == torch.float32 and is_here("polynomial_mmd", x.shape[1], x.device)
    return here and parts >= torch.get_num_threads()


def fixed_point(x: Tensor, y: Tensor, kernel: Kernel, subsets: int, size: int) -> Fixed | None:
    """Both sets about one centre; None where rounding might show in the mean over subsets."""
    x, y = x.contiguous(), y.contiguous()
    means = x.mean(0), y.mean(0)
    centre = (means[0] + means[1]) / 2  # any will do; the nearer to all samples, the finer the units
    norms, units = zip(ranges(x, centre), ranges(y, centre), strict=True)
    norm = torch.cat(norms).double().mean()
    unit = torch.cat(units).double().square().mean().sqrt()
    typical = abs(kernel.coef0) + abs(kernel.gamma) * float(norm + centre.double().square().sum())
    # Subsets that share pairs share their roundings.
    apart = min(subsets, len(x) * len(y) / size**2)
    error = rounding(float(unit), float(norm.sqrt()), kernel, size) / math.sqrt(apart)
    if not error <= PRECISION * typical < math.inf:
        return None
    own, other = means[0] - centre, means[1] - centre
    made = integers(x, centre, units[0], own, other), integers(y, centre, units[1], other, own)
    values, alone = zip(*made, strict=True)
    # A rounding that all partners see alike is made good; what they see differently is small, and means out.
    beyond = centre.double().square().sum() / 2
    base = [(each[0] + each[1:3] - beyond) * kernel.gamma + kernel.coef0 / 2 for each in alone]
    half = torch.cat(base, 1).mean()
    rest = tuple((each - half).float() for each in base)
    return Fixed(values, units, rest, 2 * float(half))  # type: ignore[arg-type]


def rounding(unit: float, norm: float, kernel: Kernel, size: int) -> float:
    """Standard deviation of out by roundings of samples with this norm, over the kernel's base to the degree - 1.

    A product is off by sqrt(2 / 12) unit norm; the squared weights of products within x, within y and across add up to
    (2 + 2 + 4) / size².
    """
    return math.sqrt(8 * 2 / 12) * unit * norm * abs(kernel.gamma) * kernel.degree / size


def native(fixed: Fixed, first: Tensor, second: Tensor, kernel: Kernel, shared: bool = False) -> Tensor:
    """By our C++, every pair of samples once where `shared`; the same bits with any number of threads."""
    out = torch.empty(len(first), dtype=torch.float64)
    first, second = first.contiguous(), second.contiguous()
    EXTENSION.module.polynomial_mmd_cpu(
        fixed.addresses(0),
        fixed.addresses(1),
        (first.data_ptr(), second.data_ptr()),
        (*(len(values) for values in fixed.values), fixed.values[0].shape[1], *first.shape),
        (kernel.gamma, fixed.middle, fixed.middle**kernel.degree),
        kernel.degree,
        shared,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


# ---- by the library


def _values(x: Tensor, y: Tensor, kernel: Kernel, shift: float, out: Tensor | None = None) -> Tensor:
    """[n, m] k(x_i, y_j) - shift, in `out` where that is given."""
    base = torch.addmm(x.new_tensor(kernel.coef0), x, y.mT, alpha=kernel.gamma, out=out)
    return base.pow_(kernel.degree).sub_(shift)


def _centre(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """A value in the middle of the kernel's."""
    return float(_values(x[:64], y[:64], kernel, 0.0).double().mean())


def one_subset(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """x, y: [m, d]"""
    size, shift = len(x), _centre(x, y, kernel)
    within = x.new_zeros((), dtype=torch.float64)
    for side in (x, y):
        for rows, after in _halves(size):
            square = _values(side[rows], side[rows], kernel, shift)
            within += square.sum(dtype=torch.float64) - square.diagonal().sum(dtype=torch.float64)
            if after.start < size:
                within += 2 * _values(side[rows], side[after], kernel, shift).sum(dtype=torch.float64)
    across = _values(x, y, kernel, shift).sum(dtype=torch.float64)
    return within / (size * (size - 1)) - 2 * across / size**2


def _halves(size: int) -> Iterator[tuple[slice, slice]]:
    """Two spans of rows, each with the rows after it: three quarters of a symmetric square."""
    middle = (size + 1) // 2
    yield slice(0, middle), slice(middle, size)
    yield slice(middle, size), slice(size, size)


def all_pairs(x: Tensor, y: Tensor, first: Tensor, second: Tensor, kernel: Kernel) -> Tensor:
    """Every kernel value once: sums over subsets are products with their 0/1 members, [n, subsets]."""
    size, shift = first.shape[1], _centre(x, y, kernel)
    in_x, in_y = _members(first, x), _members(second, y)
    within = _sums(x, x, in_x, in_x, kernel, shift) + _sums(y, y, in_y, in_y, kernel, shift)
    across = _sums(x, y, in_x, in_y, kernel, shift)
    return within / (size * (size - 1)) - 2 * across / size**2


def _members(chosen: Tensor, x: Tensor) -> Tensor:
    """chosen: [subsets, size] -> [n, subsets] of 0 and 1, in the type of x."""
    return x.new_zeros(len(chosen), len(x)).scatter_(1, chosen, 1.0).mT.contiguous()


def _sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor, kernel: Kernel, shift: float) -> Tensor:
    """[subsets] fp64: sum of kernel values over the pairs of each subset; within one set without the diagonal.

    Tile by tile, in memory that is used again: what is done with the values of one finds them in a cache.
    """
    total = x.new_zeros(in_x.shape[1], dtype=torch.float64)
    same = x is y
    tile = x.new_empty(ROWS * COLUMNS)
    for start in range(0, len(x), ROWS):
        rows = slice(start, min(start + ROWS, len(x)))
        for first in range(start if same else 0, len(y), COLUMNS):
            columns = slice(first, min(first + COLUMNS, len(y)))
            shape = rows.stop - rows.start, columns.stop - columns.start
            values = _values(x[rows], y[columns], kernel, shift, tile[: shape[0] * shape[1]].view(shape))
            if same and first == start:  # pairs within the rows come twice, those with later samples once
                values.fill_diagonal_(0)
                values[:, : shape[0]] *= 0.5
            total += ((values @ in_y[columns]).double() * in_x[rows]).sum(0)
    return total * 2 if same else total
