r"""Transposed convolution, with the batch normalisation + activation before it and the statistics after it.

    a = act((x - m) / sqrt(v + eps) * g + b)          the prologue: of the block before, or an activation, or nothing
    y = conv_transpose(a, W) + bias                   x [N, Cin, H, W], W [Cin, Cout / groups, kh, kw]
    mean_c, var_c = statistics of y                   for the batch normalisation after it (batch_norm_act)

A generator is a chain of these (Radford et al. 2016, arXiv:1511.06434): what goes from block to block is the raw y and
its statistics. The normalised tensor a is not kept between forward and backward; it is made from x where a product
needs it. The gradient through the statistics belongs to whoever uses them as prologue, see batch_norm_act.

    y[n, o, s h - p + d i] += sum_c a[n, c, h] W[c, o, i]                  (rows; columns alike)

Backward, for the gradient g of y: da = convolution of g with W, dW = correlation of a and g, and from da to x as in
batch_norm_act.

Stride s with kernel 2 s and padding s / 2 splits into s^2 convolutions of 2x2 taps without a wasted product, one per
residue of the output's position (DESIGN.md, section 3a): phases.py, triton.py. On the CPU small maps and few output
channels go through one matrix product and a sum of its columns: columns.py, csrc/cpu/fold.cpp; many channels through
minimal filtering: fastgan/kernels/winograd.py. The rest is the library's.
"""

from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry
from fastgan.kernels.conv_transpose_bn_act.op import conv_transpose
from fastgan.kernels.conv_transpose_bn_act.reference import CASES, reference

__all__ = ["CASES", "Geometry", "conv_transpose", "reference"]
