"""Launches the Triton kernels of the transposed convolution: forward, statistics, gradients of input and weight.

Activations are [N, C, H, W] or [N, C, L] whose memory is [N, H, W, C] or [N, L, C] (else they are copied), float32,
bfloat16 or float16; weights [Cin, Cout, *kernel], best in channels-last memory, are converted to the type of the
activations. All runs on the current stream, without atomic additions: the same bits every time. Which transposed
convolutions there are kernels for, and how they split: phases.py.

Two versions of each kernel: by pointers, and by tensor descriptors, for sm_90 and on. The image layer, of few output
channels, has a kernel of its own. Tiles come from a static table, or from a caller who has measured.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels.conv_transpose_bn_act import calls
from fastgan.kernels.conv_transpose_bn_act.calls import Call, How, Prologue
from fastgan.kernels.conv_transpose_bn_act.phases import Phases, Tile, channels_first, phases_of, rows

__all__ = ["How", "Prologue", "Tile", "convolution", "default_how", "forward", "input_gradient"]
__all__ += ["phases_of", "prologue_of", "weight_gradient"]

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    phases: Phases,
    prologue: Prologue | None = None,
    *,
    act: int = 0,
    slope: float = 0.0,
    want_stats: bool = False,
    how: How | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y = act(convT(prologue(x), weight) + bias), and with want_stats the mean and biased variance of y per channel.

    x: [N, Cin, H, W] or [N, Cin, L], not empty; weight: [Cin, Cout, *kernel]; bias: [Cout] or None
    Returns y [N, Cout, s H, s W] or [N, Cout, s L], channels-last, and mean, var: [Cout] float64, of y as it is stored,
    or None.
    """
    how, of = how or default_how(x), prologue or Prologue()
    x_rows, w_rows = rows(x), rows(weight.to(x.dtype))
    with _on(x):
        if calls.is_image(phases, w_rows.shape[3]) and not want_stats:
            call, y = calls.image_layer(x_rows, w_rows, bias, phases, of, act, slope, how)
            call.launch()
            return channels_first(y, x.dim()), None, None
        call, y, made, counts = calls.forward(x_rows, w_rows, bias, phases, of, act, slope, want_stats, how)
        call.launch()
        if made is None or counts is None:
            return channels_first(y, x.dim()), None, None
        merging, mean, var = calls.merge(made, counts, y.numel() // y.shape[3])
        _launch(merging)
    return channels_first(y, x.dim()), mean, var


def input_gradient(grad: Tensor, weight: Tensor, phases: Phases, *, how: How | None = None) -> Tensor:
    """The gradient [N, Cin, H, W] of the transposed convolution's input (after the prologue), for that of its output.

    grad: [N, Cout, s H, s W] or [N, Cout, s L], not empty; weight: [Cin, Cout, *kernel]
    """
    return convolution(grad, weight, None, phases, how=how)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    phases: Phases,
    *,
    act: int = 0,
    slope: float = 0.0,
    how: How | None = None,
) -> Tensor:
    """act(conv(x, weight) + bias) with the stride, padding and kernel of `phases`: also a critic's convolution.

    x: [N, I, s H, s W] or [N, I, s L], not empty; weight: [O, I, *kernel]; bias: [O] or None. Returns [N, O, H, W].
    Its own input gradient is `forward` with the same weight.
    """
    with _on(x):
        weight_rows = rows(weight.to(x.dtype))
        call, y = calls.convolution(rows(x), weight_rows, bias, phases, act, slope, how or default_how(x))
        call.launch()
    return channels_first(y, x.dim())


def weight_gradient(
    x: Tensor,
    grad: Tensor,
    phases: Phases,
    prologue: Prologue | None = None,
    *,
    dtype: torch.dtype | None = None,
    how: How | None = None,
) -> Tensor:
    """The gradient [Cin, Cout, *kernel] of the weight, channels-last, from x before the prologue and that of y.

    x: [N, Cin, H, W] or [N, Cin, L], not empty; grad: [N, Cout, s H, s W] or [N, Cout, s L]
    dtype: of the result; that of x where not given
    """
    with _on(x):
        of, made_as = prologue or Prologue(), dtype or x.dtype
        work, out = calls.weight_gradient(rows(x), rows(grad.to(x.dtype)), phases, of, made_as, how or default_how(x))
        _launch(work)
    return channels_first(out, x.dim())


def prologue_of(
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: int,
    slope: float,
    dtype: torch.dtype = torch.float32,
) -> Prologue:
    """Normalisation and activation as a prologue: mean, var, weight, bias [C] as in batch_norm_act, or None.

    Computed in float64 and rounded once. The rounded mean is subtracted first, what it lacks is part of the shift, so
    that nothing is lost where the deviation is small beside the mean.
    """
    some = next((v for v in (mean, weight, bias) if v is not None), None)
    if some is None:
        return Prologue(act=act, slope=slope)
    exact = some.detach().double()
    if mean is None or var is None:
        mean, scale = torch.zeros_like(exact), torch.ones_like(exact)
    else:
        scale = (var + eps).rsqrt()
    center = mean.to(dtype)
    if weight is not None:
        scale = scale * weight
    shift = (center - mean) * scale
    if bias is not None:
        shift = shift + bias
    return Prologue(center, scale.to(dtype), shift.to(dtype), act, slope)


def default_how(x: Tensor) -> How:
    """For the device of x; in Triton's interpreter, on the CPU, as for an H200."""
    capability = _capability(x.device) if x.is_cuda else 90
    return How(capability, descriptors=capability >= 90)


@functools.cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _launch(work: list[Call]) -> None:
    for call in work:
        call.launch()
