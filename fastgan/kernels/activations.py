"""The activations that the fused layers know, in PyTorch: the reference that every kernel is compared with.

The codes are those of NormActKind in csrc/norm_act.h.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError, suggest

ACTS = {"none": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4, "silu": 5, "gelu": 6}
"""Name -> code. gelu is the exact form, z Phi(z), not its approximation by tanh."""


def code_of(act: str, where: str) -> int:
    """The code of `act`. FastganError, which begins with `where`, for a name that is none."""
    if act not in ACTS:
        raise FastganError(f"{where}: activation {act!r} is not known{suggest(str(act), ACTS)}")
    return ACTS[act]


def activate(z: Tensor, act: int, slope: float) -> Tensor:
    """act(z), differentiable to any order. slope: of leaky ReLU on negative numbers; the others ignore it."""
    match act:
        case 1:
            return F.relu(z)
        case 2:
            return F.leaky_relu(z, slope)
        case 3:
            return z.tanh()
        case 4:
            return z.sigmoid()
        case 5:
            return F.silu(z)
        case 6:
            return F.gelu(z)
    return z


def activate_backward(grad: Tensor, z: Tensor, act: int, slope: float) -> Tensor:
    """grad act'(z), for places where autograd does not reach: inside an op."""
    aten = torch.ops.aten
    backward: dict[int, Callable[[], Tensor]] = {
        1: lambda: aten.threshold_backward(grad, z, 0),
        2: lambda: aten.leaky_relu_backward(grad, z, slope, False),
        3: lambda: aten.tanh_backward(grad, z.tanh()),
        4: lambda: aten.sigmoid_backward(grad, z.sigmoid()),
        5: lambda: aten.silu_backward(grad, z),
        6: lambda: aten.gelu_backward(grad, z),
    }
    return backward[act]() if act else grad


def invertible(act: int, slope: float) -> bool:
    """Whether act'(z) can be told from act(z), so that z need not be kept."""
    return act in (0, 1, 3, 4) or (act == 2 and slope > 0)


def slope_from_output(a: Tensor, act: int, slope: float) -> Tensor | None:
    """act'(z) as a function of a = act(z), for activations that are invertible; None for a factor of 1."""
    match act:
        case 1:
            return (a > 0).to(a.dtype)
        case 2:
            return (a > 0).to(a.dtype) * (1 - slope) + slope
        case 3:
            return 1 - a * a
        case 4:
            return a * (1 - a)
    return None
