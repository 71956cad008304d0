r"""Adam and the exponential moving average of the parameters, in one pass over memory.

For every element of every tensor, with the gradient g scaled first and t counting from 1 (Kingma & Ba 2015,
algorithm 1; bias corrections from t and the betas of this step, as `torch.optim.Adam` computes them):

    g  <- grad * grad_scale
    m  <- beta1 m + (1 - beta1) g
    v  <- beta2 v + (1 - beta2) g^2
    p  <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    e  <- ema_decay e + (1 - ema_decay) p

Fused Adam followed by an average on its own moves ten arrays of the size of the parameters through memory; this moves
nine (five in, four out), at once. Everything that may change from step to step is a 0-dim tensor on the device of the
parameters, and so is the flag that skips a step whose gradients are not finite: there is nothing that the host has to
wait for, so a step can be captured into a CUDA graph.

Native: csrc/adam_ema.h (the mathematics), csrc/cpu/adam_ema.cpp, csrc/cuda/adam_ema.cu.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose, disable, register

# Shapes of the parameters that test and benchmark share.
CASES: dict[str, tuple[tuple[int, ...], ...]] = {
    "odd sizes": ((1,), (3, 5), (7, 3, 3, 3), (4097,), (), (17,)),
    "an empty one": ((0,), (5,), (2, 0, 3)),
    "only an empty one": ((0, 4),),
    "larger than a chunk": ((8192,), (100_003,)),
    "many": tuple((1 + i % 13,) for i in range(1000)),
    "dcgan-64 generator": (
        (128, 512, 4, 4), (512,), (512,), (512, 256, 4, 4), (256,), (256,), (256, 128, 4, 4), (128,), (128,),
        (128, 64, 4, 4), (64,), (64,), (64, 3, 4, 4),
    ),
}  # fmt: skip

# (parameters and moments, gradients) -> AdamEmaTypes in csrc/adam_ema.h
TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float32, torch.bfloat16): 1,
    (torch.float64, torch.float64): 2,
    (torch.float64, torch.bfloat16): 3,
}


def adam_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    *,
    step: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: float,
    ema_decay: Tensor,
    grad_scale: Tensor,
    skip: Tensor,
) -> None:
    """One step of Adam and of the moving average, in place, without a host read.

    params, exp_avgs, exp_avg_sqs, emas: lists of tensors that agree in shape and type, fp32 or fp64; `emas` may be
        empty, for no average. Dense tensors that share the strides of their parameter (channels-last, say) are fastest.
    grads: of the same shapes, in the type of the parameters or in bfloat16; only read
    step: number of updates so far, counted up here
    lr, beta1, beta2, ema_decay, grad_scale: as in the formulae above; like `step` 0-dim float64 tensors
    skip: 0-dim bool tensor; where true, nothing changes at all, whatever the gradients hold
    Everything lies on one device. Raises FastganError when lists or types do not fit.
    """
    torch.ops.fastgan.adam_ema_(
        list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(emas),
        step, lr, beta1, beta2, eps, ema_decay, grad_scale, skip,
    )  # fmt: skip


def reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    step: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: float,
    ema_decay: Tensor,
    grad_scale: Tensor,
    skip: Tensor,
) -> None:
    """The same in PyTorch: new values of everything first, which are then taken over where `skip` is false."""
    t = step + 1
    if params:
        dtype = params[0].dtype
        step_size = (lr / (1 - beta1**t)).to(dtype)
        root_bias2 = (1 - beta2**t).sqrt().to(dtype)
        g = torch._foreach_mul([grad.to(dtype) for grad in grads], grad_scale.to(dtype))
        m = _lerp(exp_avgs, g, 1 - beta1)
        v = torch._foreach_mul(exp_avg_sqs, beta2.to(dtype))
        torch._foreach_add_(v, torch._foreach_mul(torch._foreach_mul(g, g), (1 - beta2).to(dtype)))
        denominator = torch._foreach_div(torch._foreach_sqrt(v), root_bias2)
        torch._foreach_add_(denominator, eps)
        p = torch._foreach_sub(params, torch._foreach_mul(torch._foreach_div(m, denominator), step_size))
        e = _lerp(emas, p, 1 - ema_decay) if emas else []
        old, new = [*params, *exp_avgs, *exp_avg_sqs, *emas], [*p, *m, *v, *e]
        for before, after in zip(old, new, strict=True):
            torch.where(skip, before, after, out=before)
    torch.where(skip, step, t, out=step)


def _lerp(start: Sequence[Tensor], end: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """start + weight (end - start), exact at both ends: an average of equal numbers does not drift."""
    weight = weight.to(start[0].dtype)
    return [torch.lerp(a, b, weight) for a, b in zip(start, end, strict=True)]


@torch.no_grad()
def _adam_ema(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    step: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: float,
    ema_decay: Tensor,
    grad_scale: Tensor,
    skip: Tensor,
) -> None:
    lists = (params, grads, exp_avgs, exp_avg_sqs, emas)
    scalars = (step, lr, beta1, beta2, ema_decay, grad_scale, skip)
    _check(lists, scalars)
    choice = choose("adam_ema", step.device)
    if not (choice.native and _native(lists, scalars, eps)):
        reference(*lists, step, lr, beta1, beta2, eps, ema_decay, grad_scale, skip)


def _native(lists: tuple[list[Tensor], ...], scalars: tuple[Tensor, ...], eps: float) -> bool:
    """Runs the native kernel. False where it cannot run, and then nothing has been changed."""
    params, grads, exp_avgs, exp_avg_sqs, emas = lists
    if not _same_runs_of_memory(params, exp_avgs, exp_avg_sqs, emas):
        return False
    grads = [_laid_out_like(grad, param) for grad, param in zip(grads, params, strict=True)]
    call = EXTENSION.module.AdamEmaCall(
        *([tensor.data_ptr() for tensor in tensors] for tensors in (params, grads, exp_avgs, exp_avg_sqs, emas)),
        [param.numel() for param in params],
        [scalar.data_ptr() for scalar in scalars],
        eps,
    )
    types = TYPES[params[0].dtype, grads[0].dtype] if params else 0
    device = scalars[0].device
    if device.type == "cpu":
        EXTENSION.module.adam_ema_cpu(call, types, torch.get_num_threads())
    else:
        scratch = torch.empty(EXTENSION.module.ADAM_EMA_SCRATCH, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        if status := EXTENSION.module.adam_ema_cuda(call, types, scratch.data_ptr(), device.index, stream):
            disable("adam_ema", device, status)
            return False
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *emas, scalars[0]])
    return True


def _check(lists: tuple[list[Tensor], ...], scalars: tuple[Tensor, ...]) -> None:
    params, grads, exp_avgs, exp_avg_sqs, emas = lists
    if {len(grads), len(exp_avgs), len(exp_avg_sqs), len(emas) or len(params)} != {len(params)}:
        raise FastganError(
            f"adam_ema_: expected lists of equal length, got {len(params)} parameters, {len(grads)} gradients, "
            f"{len(exp_avgs)} and {len(exp_avg_sqs)} moments, {len(emas)} averages (none of them is fine)"
        )
    dtypes = {tensor.dtype for tensors in (params, exp_avgs, exp_avg_sqs, emas) for tensor in tensors}
    grad_dtypes = {grad.dtype for grad in grads}
    if params and (len(dtypes) != 1 or len(grad_dtypes) != 1 or (*dtypes, *grad_dtypes) not in TYPES):
        raise FastganError(
            "adam_ema_: expected float32 or float64 parameters, moments and averages, and gradients of the same type "
            f"or bfloat16; got {_names(dtypes)} with gradients {_names(grad_dtypes)}; convert them, or call per type"
        )
    shapes = [param.shape for param in params]
    for name, tensors in zip(("gradient", "first moment", "second moment", "average"), lists[1:], strict=True):
        if tensors and [tensor.shape for tensor in tensors] != shapes:
            i = next(i for i, tensor in enumerate(tensors) if tensor.shape != shapes[i])
            raise FastganError(
                f"adam_ema_: expected the {name} of parameter {i} to have its shape {tuple(shapes[i])}, "
                f"got {tuple(tensors[i].shape)}"
            )
    scalar_dtypes = [scalar.dtype for scalar in scalars]
    if scalar_dtypes != [torch.float64] * 6 + [torch.bool] or any(scalar.dim() for scalar in scalars):
        raise FastganError(
            "adam_ema_: expected step, lr, beta1, beta2, ema_decay and grad_scale as 0-dim float64 tensors and skip as "
            f"a 0-dim bool tensor, got {', '.join(f'{_names({s.dtype})} {list(s.shape)}' for s in scalars)}"
        )
    if scalars[0].is_cuda:  # an op that is called with CPU tensors only comes here with CPU tensors only
        devices = {str(tensor.device) for tensors in (*lists, scalars) for tensor in tensors}
        if len(devices) != 1:
            raise FastganError(f"adam_ema_: expected all tensors on one device, got {', '.join(sorted(devices))}")


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _same_runs_of_memory(*lists: list[Tensor]) -> bool:
    """Whether each parameter and its state are dense and share their strides, so that they can be walked as one run."""
    if all(tensor.is_contiguous() for tensors in lists for tensor in tensors):
        return True
    params, *others = [[tensor.stride() for tensor in tensors] for tensors in lists if tensors]
    return all(strides == params for strides in others) and all(_is_dense(param) for param in lists[0])


def _laid_out_like(grad: Tensor, param: Tensor) -> Tensor:
    if grad.stride() == param.stride():
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a run of memory, in whatever order of the dimensions."""
    expected = 1
    dimensions = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dimensions if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


register(
    "adam_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] emas, Tensor(e!) step, Tensor lr, Tensor beta1, Tensor beta2, float eps, Tensor ema_decay, "
    "Tensor grad_scale, Tensor skip) -> ()",
    _adam_ema,
    fake=lambda *_: None,
)
