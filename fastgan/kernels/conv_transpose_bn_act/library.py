"""The products of a transposed convolution without columns: by minimal filtering on a CPU, or the library's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastgan.kernels import winograd
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry
from fastgan.kernels.winograd import channels_last


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y [N, Cout, H', W'], channels-last."""
    g = geometry
    y = winograd.convolution(
        channels_last(x), channels_last(weight), bias, g.stride, g.padding, g.dilation, True, g.output_padding, g.groups
    )
    return channels_last(y)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias for the gradient `grad` of y; None for those that are not needed."""
    g, outputs = geometry, [weight.shape[1] * geometry.groups]
    x, weight = channels_last(x), channels_last(weight)
    return winograd.convolution_backward(
        grad, x, weight, outputs, g.stride, g.padding, g.dilation, True, g.output_padding, g.groups, needs
    )
