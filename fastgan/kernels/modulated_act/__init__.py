r"""Modulated convolutions (Karras et al. 2020, arXiv:1912.04958, section 2.2) without weights of their own per sample.

The paper's layer convolves sample n with w'' of equations 1 and 3, for styles s [N, I] and weights w [O, I, k, k]:

    w'_noik = s_ni w_oik        w''_noik = w'_noik / sqrt(sum_ik w'_noik^2 + eps)

A convolution is linear in its input and in its output, so that the same comes out of weights that all samples share:

    y_n = d_n * (w conv (x_n * s_n))        d_no = 1 / sqrt(sum_i s_ni^2 W_oi + eps),  W_oi = sum_k w_oik^2

d is a matrix product of N O I operations; weights [N, O, I, k, k] and a convolution in N groups are not needed. What
remains are two passes over images, which this op does, the second one together with what follows in a layer:

    x_n * s_n                                                        modulate
    gain lrelu(y_n d_n + strength noise_n + b)                       demodulate, noise, bias, leaky ReLU

Both are, for x [N, C, H, W], scale [N, C], noise [N or 1, 1, H, W], bias [C] and numbers strength, slope and gain,

    z = x scale + strength noise + bias        a = gain z where z > 0, else gain slope z

and with m = da/dz the derivatives for the gradient g of a come out of one more pass:

    dz = g m        dx = dz scale        sums = (sum_hw dz x, sum_hw dz, sum_hw dz noise), each [N, C]

of which the first is the gradient of the scale, the second, summed over n, that of the bias, the third, summed over
both, that of the strength. z is computed again; nothing but x is kept. The noise has no derivative.

Native: csrc/modulated_act.h, csrc/cpu/modulated_act.cpp; for GPUs triton.py, in float32, bfloat16 and float16.
"""

from fastgan.kernels.modulated_act.op import TYPES, demodulation, modulate, modulated_act
from fastgan.kernels.modulated_act.reference import CASES, reference, reference_backward

__all__ = ["CASES", "TYPES", "demodulation", "modulate", "modulated_act", "reference", "reference_backward"]
