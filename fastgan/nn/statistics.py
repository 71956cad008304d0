"""What a batch normalisation normalises by, exactly as PyTorch's layers: statistics of the batch, running statistics,
also those of all processes of a group.

A group sums one float64 vector over its processes, twice per layer: (count mean_c ..., count), then the squared
deviations from the common mean, so that nothing cancels where the mean is large and the variance small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fastgan.errors import FastganError
from fastgan.kernels.batch_norm_act import Norm, batch_norm_stats
from fastgan.kernels.batch_norm_act.reference import per_channel

Reduce = Callable[[Tensor], Tensor]
"""Sums a float64 vector over all processes that take part, and returns it."""


def uses_batch_statistics(norm: Any) -> bool:
    return bool(norm.training or (norm.running_mean is None and norm.running_var is None))


def is_alone(norm: Any, x: Tensor) -> bool:
    """Whether it normalises by the statistics of x and of nothing else, and can: see norm_of."""
    if norm is None or not uses_batch_statistics(norm) or reduce_of(norm, x.device) is not None:
        return False
    return x.dim() > 1 and x.numel() != x.shape[1]


def norm_of(norm: Any, x: Tensor, measured: tuple[Tensor, Tensor] | None, act: int = 0, slope: float = 0.0) -> Norm:
    """What `norm` and the activation behind it do to x [N, C, ...], by its mode. Updates its running statistics.

    measured: mean and var of x, where they are known already. Raises ValueError in training with one value per channel.
    """
    track = norm.training and norm.track_running_stats
    if track and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if not uses_batch_statistics(norm):
        mean, var = norm.running_mean.double(), norm.running_var.double()
        return Norm(mean, var, norm.weight, norm.bias, norm.eps, act, slope, training=False)
    reduce = reduce_of(norm, x.device)
    if reduce is None and x.numel() == x.shape[1]:  # PyTorch's words
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    mean, var = batch_norm_stats(x) if measured is None else measured
    count: Tensor | float = x.numel() // x.shape[1]
    if reduce is not None:
        mean, var, count = _over_all_processes(x, mean, var, reduce)
    if track and norm.running_mean is not None:
        _update_running(norm, mean, var, count)
    if reduce is None:
        return Norm(mean, var, norm.weight, norm.bias, norm.eps, act, slope, training=True)
    weight, bias = _depending_on(norm, mean, var, x.dtype)
    return Norm(mean.detach(), var.detach(), weight, bias, norm.eps, act, slope, training=False)


@torch.no_grad()
def _update_running(norm: Any, mean: Tensor, var: Tensor, count: Tensor | float) -> None:
    """running = (1 - momentum) running + momentum new, with the unbiased variance; momentum None: the mean of all."""
    momentum = norm.momentum
    if momentum is None:
        batches = norm.num_batches_tracked  # where nobody counts, PyTorch leaves them as they are
        momentum = 0.0 if batches is None else batches.double().reciprocal()
    unbiased = var * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if running is not None:
            running.copy_(running.double() * (1 - momentum) + new * momentum)


# ---- over processes


def reduce_of(norm: Any, device: torch.device) -> Reduce | None:
    """How the statistics of this layer in training are summed over processes; None where they are its own."""
    group = getattr(norm, "process_group", None)
    if not norm.training:
        return None
    if isinstance(norm, nn.SyncBatchNorm):
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        if device.type == "cpu":  # PyTorch's words
            raise ValueError("SyncBatchNorm expected input tensor to be on GPU or XPU or privateuseone")
        group = group or distributed.group.WORLD
    if group is None or callable(group):
        return group
    return functools.partial(_sum_over, group) if distributed.get_world_size(group) > 1 else None


def _sum_over(group: Any, vector: Tensor) -> Tensor:
    distributed.all_reduce(vector, group=group)
    return vector


def _over_all_processes(x: Tensor, mean: Tensor, var: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
    """mean, var, count [1] in common, from those of x; differentiable in x to any order."""
    common, spread, count = _Common.apply(x, mean, var, reduce)  # type: ignore[no-untyped-call]
    return common, spread, count


class _Common(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
        count = mean.new_full((1,), x.numel() // x.shape[1])
        sums = reduce(torch.cat([mean * count, count]))
        common = sums[:-1] / sums[-1]
        squares = reduce((var + (mean - common).square()) * count)
        total = sums[-1:].clone()
        ctx.reduce = reduce
        ctx.mark_non_differentiable(total)
        ctx.save_for_backward(x, common, total)
        return common, squares / total, total

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        x, mean, total = ctx.saved_tensors
        of_mean, of_var = _Sum.apply(torch.stack([of_mean, of_var]), ctx.reduce) / total  # type: ignore[no-untyped-call]
        dtype = torch.promote_types(x.dtype, torch.float32)
        # Derivatives: of the mean 1 / total, of the variance 2 (x - mean) / total.
        center = mean.detach().to(dtype)
        rest = (of_mean - 2 * of_var * (mean - center)).to(dtype)
        deviation = x.to(dtype) - per_channel(center, x)
        dx = deviation * per_channel((2 * of_var).to(dtype), x) + per_channel(rest, x)
        return dx.to(x.dtype), None, None, None


class _Sum(torch.autograd.Function):
    """Of a vector over processes. What depends on the sum there adds up here."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, reduce: Reduce) -> Tensor:
        ctx.reduce = reduce
        return reduce(vector.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad.contiguous(), ctx.reduce), None  # type: ignore[no-untyped-call]


def _depending_on(norm: Any, mean: Tensor, var: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias with the values of the layer's, through which the gradient of mean and var goes.

    The kernels take the statistics as constants m, v then. With w' = w sqrt((v + eps) / (var + eps)) and
    b' = b + (m - mean) w / sqrt(var + eps) the result is the same function of mean and var.
    """
    arithmetic = torch.promote_types(dtype, torch.float32)
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    inverse = torch.rsqrt(var + norm.eps)
    scale = weight * inverse
    bias = bias + (mean.detach() - mean) * scale
    return (scale / inverse.detach()).to(arithmetic), bias.to(arithmetic)


def check_input(name: str, norm: Any, x: Tensor) -> None:
    """ValueError for a wrong number of dimensions, as PyTorch's; FastganError for the rest."""
    norm._check_input_dim(x)
    if x.shape[1] != norm.num_features:
        raise FastganError(
            f"{name}: expected {norm.num_features} channels, got {x.shape[1]} in a tensor of shape {tuple(x.shape)}; "
            "num_features has to be the number of channels of the layer before"
        )
    if not x.is_floating_point():
        raise FastganError(f"{name}: expected floating-point numbers, got {x.dtype}; convert them, as by x.float()")
    if norm.weight is not None and norm.weight.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
        raise FastganError(
            f"{name}: expected the input in the type of the weight, {norm.weight.dtype}, got {x.dtype}; convert one of "
            "them by .to()"
        )
    holder = norm.running_mean if norm.weight is None else norm.weight
    if holder is not None and holder.device != x.device:
        raise FastganError(
            f"{name}: expected all tensors on one device, got the input on {x.device} and the layer on "
            f"{holder.device}; move one of them by .to()"
        )
