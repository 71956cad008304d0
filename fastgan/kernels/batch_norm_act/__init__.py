r"""Batch normalisation in training, followed by an activation, and bias with activation: forward, backward.

For x [N, C, ...], per channel c with mean m_c and biased variance v_c over the M = numel / C values of the batch
(Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1):

    x^ = (x - m) / sqrt(v + eps)        z = x^ w_c + b_c        a = act(z)

and for the gradient g of a, with dz = g act'(z):

    db = sum dz        dw = sum dz x^
    dx = w / sqrt(v + eps) (dz - db / M - x^ dw / M)        where m and v are those of x,
    dx = w / sqrt(v + eps) dz                               where they are constants (evaluation)

Neither z nor a is kept: x, m and v are, and z is computed again. Forward: one read for the statistics, one read and
one write for the rest; backward: two reads for the sums, two reads and one write for dx.

m and v are float64, and z is computed as (x - c) s + t with c = m rounded to the type of the arithmetic, s = w /
sqrt(v + eps) and t = b - (m - c) s, so that nothing cancels where the mean is large and the variance small.

bias_act is the same without m and v: a = act(x + b).

Native: csrc/norm_act.h, csrc/cpu/norm_act.cpp, csrc/cuda/norm_act.cu.
"""

from fastgan.kernels.activations import ACTS
from fastgan.kernels.batch_norm_act.op import (
    batch_norm_act,
    batch_norm_stats,
    bias_act,
    scale_bias_act,
    train_batch_norm_act,
)
from fastgan.kernels.batch_norm_act.reference import CASES, Norm, reference, reference_stats

__all__ = [
    "ACTS",
    "CASES",
    "Norm",
    "batch_norm_act",
    "batch_norm_stats",
    "bias_act",
    "reference",
    "reference_stats",
    "scale_bias_act",
    "train_batch_norm_act",
]
