"""A chain of transposed convolutions, batch normalisations and activations: what the modules and fuse() compute.

    x -> [norm] -> [act] -> conv -> [norm] -> [act] -> conv -> ... -> [norm] -> [act]

From one convolution to the next go its raw output y and the statistics of y. The normalisation and the activation are
applied by the next convolution on the fly, so that what they give is not kept for backward; behind the last convolution
they are one pass. Where our kernels do not run (other devices and types, torch.export), the layers themselves do.

Without gradients a normalisation by running statistics is a part of the convolution before it: of its weight and bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastgan.errors import FastganError
from fastgan.kernels._runtime import choose
from fastgan.kernels.activations import ACTS, activate
from fastgan.kernels.batch_norm_act import Norm, batch_norm_act, bias_act, train_batch_norm_act
from fastgan.kernels.conv_transpose_bn_act import conv_transpose
from fastgan.nn.statistics import check_input, is_alone, norm_of, uses_batch_statistics

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = {code: name for name, code in ACTS.items()}
# Of these PyTorch, too, keeps the result for backward. That of the others may be changed in place by whoever gets it,
# so they are not computed inside a convolution, which keeps its result.
KEEP_RESULT = ("relu", "tanh", "sigmoid")
NOTHING = Norm(training=False)
# The old forms of torch.nn.utils.weight_norm and spectral_norm: hooks that compute the weight
WEIGHT_HOOKS = (WeightNorm, SpectralNorm)


class Stage(NamedTuple):
    """conv, norm and act, in this order. conv and norm may be None. name: for errors; slope: of leaky_relu."""

    name: str
    conv: Any
    norm: Any
    act: str
    slope: float


def run_chain(x: Tensor, stages: Sequence[tuple[Any, ...]]) -> Tensor:
    """x [N, C, ...] through `stages`, tuples as Stage, of which only the first may lack a convolution.

    Raises FastganError, and what PyTorch's layers raise.
    """
    chain = [Stage(*stage) for stage in stages]
    if not _runs_here(x) or not all(_is_known(stage, x.dim()) for stage in chain):
        return _library(x, chain)
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return _fused(x, chain, None)
    half = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return _fused(x, chain, half)


def _runs_here(x: Tensor) -> bool:
    """Whether our kernels do: for plain tensors in our types, not where an outer program is to be written in PyTorch's
    own operations, or differentiated or batched by transformations that know only these."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    if not torch.compiler.is_compiling():
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        if transformed or not (type(x) in (Tensor, nn.Parameter) or isinstance(x, FakeTensor)):
            return False
    return x.dtype in TYPES and x.numel() > 0 and _has_kernels(x.device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernels(device: torch.device) -> bool:
    return choose("batch_norm_act", device).native


def _is_known(stage: Stage, dim: int) -> bool:
    """Whether the layers are those that they were when the stage was made, without hooks, for inputs with samples."""
    conv, norm = stage.conv, stage.norm
    if conv is not None and not (is_conv_transpose(conv) and dim == len(conv.kernel_size) + 2):
        return False
    return norm is None or is_batch_norm(norm)


def is_conv_transpose(module: nn.Module) -> bool:
    """One whose forward is PyTorch's, in one or two dimensions, and whose hooks only make the weight."""
    forward = type(module).forward
    if forward is not nn.ConvTranspose1d.forward and forward is not nn.ConvTranspose2d.forward:
        return False
    return not _overridden(module) and all(type(h) in WEIGHT_HOOKS for h in module._forward_pre_hooks.values())


def is_batch_norm(module: nn.Module) -> bool:
    """One whose forward is PyTorch's or ours, without hooks."""
    forward = type(module).forward
    if forward not in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward) and not hasattr(type(module), "normalise"):
        return False
    return not _overridden(module) and not module._forward_pre_hooks


def is_layer(module: nn.Module) -> bool:
    """One that a chain can compute."""
    return is_conv_transpose(module) or is_batch_norm(module)


def _overridden(module: nn.Module) -> bool:
    """By a hook that has to see what goes in or out, or a forward of the object's own."""
    return bool(
        module._forward_hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in module.__dict__
    )


def run_bias_act(name: str, x: Tensor, bias: Tensor, act: str, slope: float) -> Tensor:
    """act(x + bias) in the type of x. x: [N, C, ...], bias: [C]. Raises FastganError."""
    if not x.is_floating_point() or x.dim() < 2 or x.shape[1] != bias.shape[0]:
        raise FastganError(
            f"{name}: expected floating-point numbers [N, {bias.shape[0]}, ...], got {x.dtype} {tuple(x.shape)}; "
            "num_features has to be the number of channels of the layer before"
        )
    if bias.device != x.device:
        raise FastganError(
            f"{name}: expected all tensors on one device, got the input on {x.device} and the bias on {bias.device}; "
            "move one of them by .to()"
        )
    if _runs_here(x):
        return bias_act(x, bias.to(torch.promote_types(x.dtype, torch.float32)), act, slope)
    return activate(x + bias.to(x.dtype).view(-1, *[1] * (x.dim() - 2)), ACTS[act], slope)


# ---- with the library's layers


def _library(x: Tensor, chain: list[Stage]) -> Tensor:
    for stage in chain:
        if stage.conv is not None:
            if is_conv_transpose(stage.conv):
                _check_conv_input(stage, x)
                parameter = next(stage.conv.parameters(), None)
                if parameter is not None:  # none where the weight was replaced by a tensor
                    _check_place(stage, x, parameter, None)
            x = stage.conv(x)
        if stage.norm is not None:
            x = _library_norm(stage, x)
        x = activate(x, ACTS[stage.act], stage.slope)
    return x


def _library_norm(stage: Stage, x: Tensor) -> Tensor:
    norm = stage.norm
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):  # put there by someone in the place of ours
        out: Tensor = norm(x)
        return out
    check_input(stage.name, norm, x)
    group = getattr(norm, "process_group", None)
    if norm.training and group is not None and not isinstance(norm, nn.SyncBatchNorm):
        return _apply(x, norm_of(norm, x, None))
    plain = getattr(norm, "normalise", norm)  # ours without its activation
    normalised: Tensor = plain(x)
    return normalised


# ---- with ours


def _fused(x: Tensor, chain: list[Stage], half: torch.dtype | None) -> Tensor:
    """half: the type in which autocast has convolutions computed."""
    if len(chain) == 1 and chain[0].conv is None and is_alone(chain[0].norm, x):
        return _train_alone(chain[0], x)
    last_format = _is_channels_last(x)
    pending: Norm | None = None  # what has yet to be applied to x
    for i, stage in enumerate(chain):
        if stage.conv is None:
            pending = _pending(stage, x, None)
            continue
        _check_conv_input(stage, x)
        x, pending = _in_type_of_convolution(x, pending, half)
        x, pending, weight = _convolve(stage, x, pending or NOTHING, half, last=i + 1 == len(chain))
        last_format = last_format or _is_channels_last(weight)
    if pending is not None:
        x = _apply(x, pending)
    if chain[-1].conv is None or (last_format and x.dim() == 4):
        return x
    return x.contiguous()  # whoever gets it may rely on PyTorch's layout, as view() does


def _train_alone(stage: Stage, x: Tensor) -> Tensor:
    """Normalisation by the statistics of x, and activation: x is read fewer times than for one after the other."""
    norm = stage.norm
    check_input(stage.name, norm, x)
    out, mean, var = train_batch_norm_act(x, norm.weight, norm.bias, eps=norm.eps, act=stage.act, slope=stage.slope)
    norm_of(norm, x, (mean, var))
    return out


def _convolve(
    stage: Stage, x: Tensor, before: Norm, half: torch.dtype | None, *, last: bool
) -> tuple[Tensor, Norm | None, Tensor]:
    """y, what has yet to be applied to it, and the weight."""
    conv, norm = stage.conv, stage.norm
    measure = norm is not None and uses_batch_statistics(norm)
    fold = norm is not None and not measure and not torch.is_grad_enabled()
    weight, bias = _weights(stage, x, half, fold=fold)
    inside = last and (norm is None or fold) and stage.act in KEEP_RESULT
    y, mean, var = conv_transpose(
        x,
        weight,
        bias,
        stride=conv.stride,
        padding=conv.padding,
        output_padding=conv.output_padding,
        groups=conv.groups,
        dilation=conv.dilation,
        norm=before,
        act_out=stage.act if inside else "none",
        want_stats=measure,
    )
    if inside:
        return y, None, weight
    if fold:
        stage = stage._replace(norm=None)
    return y, _pending(stage, y, (mean, var) if measure else None), weight


def _pending(stage: Stage, x: Tensor, measured: tuple[Tensor, Tensor] | None) -> Norm | None:
    """What norm and act of the stage do to x; None for nothing."""
    act = ACTS[stage.act]
    if stage.norm is not None:
        check_input(stage.name, stage.norm, x)
        return norm_of(stage.norm, x, measured, act, stage.slope)
    return Norm(act=act, slope=stage.slope, training=False) if act else None


def _apply(x: Tensor, norm: Norm) -> Tensor:
    act = NAMES[norm.act]
    if norm.mean is None or norm.var is None:
        return bias_act(x, norm.bias, act, norm.slope)
    return batch_norm_act(
        x,
        norm.mean,
        norm.var,
        norm.weight,
        norm.bias,
        eps=norm.eps,
        act=act,
        slope=norm.slope,
        training=norm.training,
    )


def _in_type_of_convolution(x: Tensor, pending: Norm | None, half: torch.dtype | None) -> tuple[Tensor, Norm | None]:
    """x and `pending` as autocast would hand them to a convolution. A normalisation stays in the type that it has."""
    if half is None or x.dtype in (half, torch.float64):
        return x, pending
    if pending is not None and pending.mean is not None:
        x, pending = _apply(x, pending), None
    return x.to(half), pending


def _weights(stage: Stage, x: Tensor, half: torch.dtype | None, *, fold: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the type of x. The weight is read once: where it is computed, as by spectral normalisation,
    reading it may change state."""
    conv = stage.conv
    for hook in conv._forward_pre_hooks.values():  # weight_norm, spectral_norm: fuse() lets no others through
        hook(conv, (x,))
    weight, bias = conv.weight, conv.bias
    _check_place(stage, x, weight, half)
    if fold:
        weight, bias = _folded(weight, bias, conv.groups, stage.norm)
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def _folded(weight: Tensor, bias: Tensor | None, groups: int, norm: Any) -> tuple[Tensor, Tensor]:
    """A convolution's weight [Cin, Cout / groups, ...] and bias with the normalisation by running statistics in them:
    (y - mean) scale + shift is linear in y."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = (-norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()) * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    per_group = weight.to(dtype).view(groups, -1, *weight.shape[1:])  # [groups, Cin / groups, Cout / groups, ...]
    scaled = per_group * scale.to(dtype).view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return scaled.flatten(0, 1), shift.to(dtype)


# ---- layout, and what is refused


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _check_conv_input(stage: Stage, x: Tensor) -> None:
    conv, channels = stage.conv, -len(stage.conv.kernel_size) - 1
    if not (x.is_floating_point() or x.is_complex()):
        raise FastganError(
            f"{stage.name}: expected floating-point numbers, got {x.dtype}; convert them, as by x.float()"
        )
    if x.dim() >= -channels and x.shape[channels] != conv.in_channels:
        raise FastganError(
            f"{stage.name}: expected {conv.in_channels} channels, got {x.shape[channels]} in a tensor of shape "
            f"{tuple(x.shape)}; in_channels has to be the number of channels of the layer before"
        )


def _check_place(stage: Stage, x: Tensor, weight: Tensor, half: torch.dtype | None) -> None:
    if weight.device != x.device:
        raise FastganError(
            f"{stage.name}: expected all tensors on one device, got the input on {x.device} and the weight on "
            f"{weight.device}; move one of them by .to()"
        )
    if weight.dtype != x.dtype and x.dtype != half and not torch.is_autocast_enabled(x.device.type):
        raise FastganError(
            f"{stage.name}: expected the input in the type of the weight, {weight.dtype}, got {x.dtype}; "
            "convert one of them by .to()"
        )
