r"""Which samples are close: the nearest ones of each, and who lies in whose ball, from samples in fixed point.

With x_i = u_i q_i + e_i (fixed_point.py; the centre is the origin here) a squared distance is

    |x_i - y_j|² = |x_i|² + |y_j|² - 2 u_i u_j q_i·q_j - 2 (e_i·y_j + x_i·e_j - e_i·e_j)

where the products of integers have no error and the last bracket is at most |e_i||y_j| + |x_i||e_j| + |e_i||e_j|. As
2|e_i||y_j| <= |e_i|²/t + t|y_j|² for every t > 0, the distance without it is off by at most margin_i + margin_j,

    margin_i = t|x_i|² + (1 + 1/t)|e_i|² + 64 · 2⁻²⁴|x_i|² + 2⁻⁹⁰

with 2⁻²⁴ for what fp32 rounds (about 19 times, where no |x_i| is above 1), and 2⁻⁹⁰ for numbers that are not normal: a
product of units that is off by 2⁻¹²⁶ is multiplied by up to 2³¹. So nearly all comparisons are certain; the few pairs
for which they are not are returned, and `distances` decides them in fp64.

On a CPU without AVX-512, by our C++ (csrc/cpu/close_pairs.cpp); elsewhere metrics/neighbours.py does with products of
the library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION, choose
from fastgan.kernels.fixed_point import features_of, integers, is_here, parts_across, parts_within, ranges

ROUNDING, UNDERFLOW = 64 * 2.0**-24, 2.0**-90
RULES = 15  # at a time
ROOM = 1 << 20, 8  # for pairs that are not certain: in all, or if that is more for each sample

# n, m samples, features, rules: test and benchmark share them
CASES: dict[str, tuple[int, int, int, int]] = {
    "Inception": (10_000, 10_000, 2048, 2),
    "few": (2000, 2000, 2048, 2),
    "one block": (700, 300, 33, 3),
}


@dataclass(frozen=True)
class Fixed:
    """values: [n, features] int16; units: [n] fp32; squares: [n] fp64, |x_i|²; errors: [n] fp64, |e_i|²"""

    values: Tensor
    units: Tensor
    squares: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Bounded:
    """Samples with margin: [n] fp32 for one t, and base: [n] fp32, |x_i|² less that."""

    fixed: Fixed
    base: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def addresses(self) -> tuple[int, ...]:
        base = self.base.data_ptr()
        return self.fixed.values.data_ptr(), self.fixed.units.data_ptr(), base, base


@dataclass(frozen=True)
class Found:
    """Of r rules, in pairs that are certain. around_y: [r, m] balls around x that have each y; inside_x: [r, n] samples
    y in the ball of each x; around_x: [r, n] balls around y that have each x.

    pairs: [p, 3] int32, those that are not: x, y, and for which balls: bit 2 r the one around x, bit 2 r + 1 around y.
    """

    around_y: Tensor
    inside_x: Tensor
    around_x: Tensor
    pairs: Tensor


def is_for(n: int, m: int, d: int, device: torch.device) -> bool:
    """Whether there are enough samples here: with fewer parts than threads the library is as fast."""
    parts = min(parts_within(n), parts_within(m), parts_across(n, m))
    return is_here("close_pairs", d, device) and parts >= torch.get_num_threads()


def fixed_point(strips: Iterable[Tensor], n: int, d: int) -> Fixed:
    """strips: [rows, d] fp32 each, finite, on a CPU: the n samples one after the other."""
    values, units = torch.empty((n, features_of(d)), dtype=torch.int16), torch.empty(n)
    squares, errors = (torch.empty(n, dtype=torch.float64) for _ in range(2))
    origin, start = torch.zeros(d), 0
    for strip in strips:
        x, rows = strip.contiguous(), slice(start, start + len(strip))
        units[rows] = ranges(x, origin)[1]
        values[rows], alone = integers(x, origin, units[rows], origin, origin)
        torch.sum(x.double().square(), 1, out=squares[rows])
        errors[rows] = alone[3] * (1 + 1e-3)  # which are fp32 sums of d / 8
        start = rows.stop
    return Fixed(values, units, squares, errors)


def bounded(*sets: Fixed) -> tuple[Bounded, ...]:
    """With the t that suits all of them, so that pairs across have bounds, too."""
    squares, errors = (torch.cat(each).sum() for each in zip(*((s.squares, s.errors) for s in sets), strict=True))
    t = float((errors / squares).sqrt().nan_to_num(0.0).clamp_min(2.0**-20))
    margins = [(t + ROUNDING) * s.squares + (1 + 1 / t) * s.errors + UNDERFLOW for s in sets]
    return tuple(Bounded(s, (s.squares - m).float(), m.float()) for s, m in zip(sets, margins, strict=True))


def nearest(x: Bounded, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest other samples of each by the least that squared distances can be: that, ascending, and who.

    [n, count] fp32, int64. Of equally near ones those with a lower number. count < n.
    """
    least = torch.empty((len(x), count), dtype=torch.float32)
    who = torch.empty((len(x), count), dtype=torch.long)
    sizes = len(x), x.fixed.values.shape[1], count
    EXTENSION.module.nearest_cpu(x.addresses, (least.data_ptr(), who.data_ptr()), sizes, torch.get_num_threads())
    return least, who


def within(x: Bounded, y: Bounded, x_border: Tensor, y_border: Tensor) -> Found | None:
    """Borders: [r, n] and [r, m] fp32, squared radii. None where more pairs are not certain than there is ROOM."""
    rules, n, m = len(x_border), len(x), len(y)
    room = max(ROOM[0], ROOM[1] * (n + m))
    around_y, inside_x, around_x = (torch.zeros((rules, count), dtype=torch.int32) for count in (m, n, n))
    pairs = torch.empty((room, 3), dtype=torch.int32)
    x_border, y_border = x_border.contiguous(), y_border.contiguous()
    limits = tuple(each.data_ptr() for each in (x.margin, y.margin, x_border, y_border))
    out = tuple(each.data_ptr() for each in (around_y, inside_x, around_x, pairs))
    sizes = n, m, x.fixed.values.shape[1], rules, room
    found = EXTENSION.module.within_cpu(x.addresses, y.addresses, limits, out, sizes, torch.get_num_threads())
    return Found(around_y, inside_x, around_x, pairs[:found]) if found <= room else None


def distances(x: Tensor, i: Tensor, y: Tensor, j: Tensor, most: int = 1 << 22) -> Tensor:
    """[p] fp64 |x[i] - y[j]|, from differences in fp64: the same for the same pair, in either order.

    x: [n, d], y: [m, d] of any type; i, j: [p]. At most about `most` numbers at a time where the library does it.
    """
    ours = x.dtype == y.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    if not (ours and choose("close_pairs", x.device).native and EXTENSION.module.pair_distances_here()):
        return reference_distances(x, i, y, j, most)
    x, y, i, j = x.contiguous(), y.contiguous(), i.contiguous(), j.contiguous()
    out = torch.empty(len(i), dtype=torch.float64)
    EXTENSION.module.pair_distances_cpu(
        (x.data_ptr(), y.data_ptr()),
        x.dtype == torch.float64,
        (i.data_ptr(), j.data_ptr()),
        (x.shape[1], len(i)),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def reference_distances(x: Tensor, i: Tensor, y: Tensor, j: Tensor, most: int) -> Tensor:
    step, parts = max(1, most // x.shape[1]), [x.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(i), step):
        a, b = (z[at[start : start + step]].double()[:, None] for z, at in ((x, i), (y, j)))
        parts.append(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").flatten())
    return torch.cat(parts)
