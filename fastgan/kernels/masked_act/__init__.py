r"""Bias and (leaky) ReLU with one bit per element, and the multiplication by the slopes that the bits stand for.

For z: [N, C, ...], bias b: [C] and slope s (0 for ReLU):

    y = z + b_c        mask = [y > 0]        a = y where mask, else s y

The derivative da/dy is diagonal, with 1 where the mask is set and s elsewhere. As M u it is all that a gradient penalty
needs of the activation: passes 2 and 3 of the shared sweep (DESIGN.md, section 4) multiply by it, the one backward and
the other forward again, where the bias comes back times one number t_n per sample:

    apply_mask(u) = M (u + t_n b_c)

M is its own transpose, so that one op serves both. Autograd keeps z or a, 32 times the memory of the mask in float32.

NaN > 0 is false. Where the mask is off, ReLU gives 0, not s y, which is NaN for y = -inf; but a is NaN where y is. At
y = 0 the slope is s, as that of torch's leaky_relu and relu. bfloat16 and float16 are computed in float32 and rounded
once.

The mask is uint8: bit i of byte j belongs to element 8j + i in the order of memory, and bits past the end are 0.

    z contiguous                                        [ceil(numel / 8)]
    z channels-last (4 or 5 dimensions), not contiguous [1, ceil(numel / 8)]

A tensor whose layout is neither is made contiguous first. One that is both (C = 1, or H = W = 1) counts as contiguous.
apply_mask works in the layout that the number of dimensions of the mask tells, which is a copy where u has another.

Native: csrc/masked_act.h, csrc/cpu/masked_act.cpp; for GPUs triton.py, in float32, bfloat16 and float16.
"""

from fastgan.kernels.masked_act.op import TYPES, apply_mask, apply_mask_, masked_act, masked_act_
from fastgan.kernels.masked_act.reference import CASES, reference, reference_apply

__all__ = ["CASES", "TYPES", "apply_mask", "apply_mask_", "masked_act", "masked_act_", "reference", "reference_apply"]
