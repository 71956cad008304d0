"""norm_act on a GPU: launches, and what PyTorch does instead once one has failed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION, disable
from fastgan.kernels.activations import activate_backward
from fastgan.kernels.batch_norm_act.reference import Norm, arithmetic_type, before_activation, per_channel, reference

WITH_SCRATCH = ("norm_act_stats", "norm_act_sums", "norm_act_train", "norm_act_backward")
# Those that are two passes over the tensor, and whether both are to be in one kernel where the device can.
IN_TWO = ("norm_act_train", "norm_act_backward")
FUSED = True


def run(name: str, norm: object, type_: int, device: torch.device, arguments: tuple[float, ...]) -> bool:
    """Queues <name>_cuda on the current stream. False where the launch failed; nothing has been written then.

    The host waits for nothing, so that it can be captured into a CUDA graph.
    """
    native = EXTENSION.module
    if name in IN_TWO:
        arguments = (*arguments, FUSED)
    if name in WITH_SCRATCH:
        # Freed when this returns: the next tensor in its place belongs to work that the stream does later.
        scratch = torch.empty(native.norm_act_scratch(norm, device.index), dtype=torch.uint8, device=device)
        arguments = (*arguments, scratch.data_ptr())
    stream = torch.cuda.current_stream(device).cuda_stream
    status = getattr(native, f"{name}_cuda")(norm, type_, *arguments, device.index, stream)
    if status:
        disable("batch_norm_act", device, status)
    return not status


# ---- the same in PyTorch


def plain_normalise(x: Tensor, norm: Norm) -> Tensor:
    return reference(x, norm.mean, norm.var, norm.weight, norm.bias, norm.eps, norm.act, norm.slope, False)


def plain_sums(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """[2, C] float64."""
    dz, dims = _dz(grad, x, norm), [d for d in range(x.dim()) if d != 1]
    return torch.stack([dz.sum(dims, dtype=torch.float64), (dz * _normalised(x, norm)).sum(dims, dtype=torch.float64)])


def plain_input(grad: Tensor, x: Tensor, norm: Norm, sums: Tensor | None, count: float) -> Tensor:
    dz = _dz(grad, x, norm)
    if sums is not None:
        dbias, dweight = (per_channel((row / count).to(dz.dtype), x) for row in sums)
        dz = dz - dbias - _normalised(x, norm) * dweight
    if norm.var is not None:
        dz = dz * per_channel(torch.rsqrt(norm.var + norm.eps).to(dz.dtype), x)
    return (dz if norm.weight is None else dz * per_channel(norm.weight.to(dz.dtype), x)).to(x.dtype)


def _dz(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    z = before_activation(x, norm)
    return activate_backward(grad.to(arithmetic_type(x.dtype)), z, norm.act, norm.slope)


def _normalised(x: Tensor, norm: Norm) -> Tensor:
    return before_activation(x, Norm(norm.mean, norm.var, eps=norm.eps))
