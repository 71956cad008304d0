"""The fused layers as modules, with the parameters, buffers, names and initialisation of the layers that they join."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.kernels.activations import code_of
from fastgan.nn.chain import run_bias_act, run_chain
from fastgan.nn.convolution import Conv2d

Size = int | tuple[int, ...]


class BatchNormAct2d(nn.BatchNorm2d):
    """act(batch_norm(x)), x: [N, C, H, W]. State as that of nn.BatchNorm2d: the keys are the same.

    act: "none", "relu", "leaky_relu", "tanh", "sigmoid", "silu" or "gelu" (exact);  negative_slope: of leaky_relu
    process_group: statistics over all its processes, in training; a group of torch.distributed, or a function that sums
        a float64 vector over whoever takes part and returns it
    Raises FastganError, and in training with one value per channel PyTorch's ValueError.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str = "relu",
        negative_slope: float = 0.2,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        code_of(act, type(self).__name__)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.act, self.negative_slope, self.process_group = act, negative_slope, process_group

    def normalise(self, x: Tensor) -> Tensor:
        """The normalisation without the activation, by PyTorch."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(x, ((_name(self, self.num_features), None, self, self.act, self.negative_slope),))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_act_repr(self)}"  # type: ignore[no-untyped-call]


class BiasAct(nn.Module):
    """act(x + bias), x: [N, C, ...]. bias starts at zero; act and negative_slope as in BatchNormAct2d."""

    def __init__(
        self,
        num_features: int,
        *,
        act: str = "relu",
        negative_slope: float = 0.2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        code_of(act, type(self).__name__)
        super().__init__()
        self.num_features, self.act, self.negative_slope = num_features, act, negative_slope
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return run_bias_act(_name(self, self.num_features), x, self.bias, self.act, self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.num_features}, {_act_repr(self)}"


class _ConvTransposeBatchNormAct(nn.Module):
    """act(norm(conv(x))) with nn.ConvTranspose `conv` and nn.BatchNorm `norm`, whose state keeps their names."""

    conv: nn.ConvTranspose1d | nn.ConvTranspose2d
    norm: nn.BatchNorm1d | nn.BatchNorm2d
    make_conv: Callable[..., Any]
    make_norm: Callable[..., Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 4,
        stride: Size = 2,
        padding: Size = 1,
        *,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: Size = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str = "relu",
        negative_slope: float = 0.2,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        code_of(act, type(self).__name__)
        super().__init__()
        self.act, self.negative_slope = act, negative_slope
        where = {"device": device, "dtype": dtype}
        self.conv = self.make_conv(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding=output_padding,
            groups=groups,
            bias=bias,
            dilation=dilation,
            **where,
        )
        self.norm = self.make_norm(out_channels, eps, momentum, affine, track_running_stats, **where)
        self.norm.process_group = process_group

    def forward(self, x: Tensor) -> Tensor:
        name = _name(self, self.conv.in_channels, self.conv.out_channels)
        return run_chain(x, ((name, self.conv, self.norm, self.act, self.negative_slope),))

    def extra_repr(self) -> str:
        return _act_repr(self)


class ConvTransposeBatchNormAct2d(_ConvTransposeBatchNormAct):
    """act(batch_norm(conv_transpose(x))): x [N, in_channels, H, W] -> [N, out_channels, H', W'].

    The arguments are those of nn.ConvTranspose2d, of nn.BatchNorm2d, and of BatchNormAct2d. State: conv.weight,
    norm.weight, norm.bias, norm.running_mean, ...
    """

    make_conv, make_norm = nn.ConvTranspose2d, nn.BatchNorm2d


class ConvTransposeBatchNormAct1d(_ConvTransposeBatchNormAct):
    """ConvTransposeBatchNormAct2d in one dimension: x [N, in_channels, L] -> [N, out_channels, L']."""

    make_conv, make_norm = nn.ConvTranspose1d, nn.BatchNorm1d


OURS = (Conv2d, BatchNormAct2d, BiasAct, _ConvTransposeBatchNormAct)


def _name(module: nn.Module, *sizes: int) -> str:
    """For errors: a module does not know under which name it is in a model."""
    return f"{type(module).__name__}({', '.join(map(str, sizes))})"


def _act_repr(module: Any) -> str:
    slope = f", negative_slope={module.negative_slope}" if module.act == "leaky_relu" else ""
    return f"act={module.act}{slope}"
