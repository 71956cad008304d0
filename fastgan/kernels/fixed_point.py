"""Samples in fixed point, for inner products of all pairs: with a centre c and a unit u_i for each sample

    x_i = c + u_i q_i + e_i        q_i integers of 13 bits, e_i what rounding leaves

and q_i·q_j in integers, where less arithmetic than a product's is exact (csrc/cpu/integer_products.h): 49 products for
64 (Strassen 1969, "Gaussian elimination is not optimal", Numerische Mathematik 13, twice over), in each half the
multiplications (Winograd 1968, "A new algorithm for inner product", IEEE Transactions on Computers C-17):

    q·r = sum_k (q_2k + r_2k+1)(q_2k+1 + r_2k) - sum_k q_2k q_2k+1 - sum_k r_2k r_2k+1

Strassen's sums of up to four values and Winograd's of two are why 13 bits and not 16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION, choose

MULTIPLE = 64  # features of a sample: filled up with zeros
LARGEST, LONGEST = 4095, 46_000  # of a value, so that eight add up in 16 bits; norm, so that products fit in 32
MOST_FEATURES = 1 << 17  # above, roundings could make LONGEST too long, and fp32 sums of their squares off by 1e-3
BLOCK, GROUP = 2048, 256  # samples a side of the pairs that a thread takes


def is_here(op: str, d: int, device: torch.device) -> bool:
    """Whether `op` can take samples of d features in fixed point on `device`, and gains by it."""
    ours = d <= MOST_FEATURES and device.type == "cpu" and choose(op, device).native
    return ours and EXTENSION.module.fixed_point_here()


def parts_within(n: int) -> int:
    """Of all pairs of n samples, that threads take: each block's with the groups after it."""
    return sum(range(math.ceil(n / GROUP), 0, -(BLOCK // GROUP)))


def parts_across(n: int, m: int) -> int:
    return math.ceil(n / BLOCK) * math.ceil(m / GROUP)


def features_of(d: int) -> int:
    """Of a sample in fixed point."""
    return -(-d // MULTIPLE) * MULTIPLE


def ranges(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """[n] squared norms, and the finest units, of x - centre. x: [n, d], centre: [d] fp32, contiguous"""
    norms, largest = x.new_empty(len(x)), x.new_empty(len(x))
    places = (norms.data_ptr(), largest.data_ptr())
    EXTENSION.module.fixed_range_cpu(x.data_ptr(), centre.data_ptr(), x.shape, *places, torch.get_num_threads())
    return norms, torch.maximum(largest / LARGEST, norms.sqrt() / LONGEST)


def integers(x: Tensor, centre: Tensor, units: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """[n, features] int16, and [4, n] fp64: c·x, e·own, e·other, e·e. units: [n], 0 where x is c; own, other: [d]"""
    n, d = x.shape
    units = units.masked_fill(units < 2.0**-120, 1.0)  # of which fp32 has no inverse
    values = torch.empty((n, features_of(d)), dtype=torch.int16)
    alone = torch.empty((4, n), dtype=torch.float64)
    addresses = tuple(each.data_ptr() for each in (x, centre, units, own, other))
    made = values.data_ptr(), alone.data_ptr()
    EXTENSION.module.to_fixed_cpu(addresses, (n, d, values.shape[1]), *made, torch.get_num_threads())
    return values, alone
