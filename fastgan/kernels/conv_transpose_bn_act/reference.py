"""The block in PyTorch, differentiable to any order. The mathematics: see __init__.py."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels import batch_norm_act
from fastgan.kernels.activations import activate
from fastgan.kernels.batch_norm_act import Norm
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry

K4S2P1 = Geometry()

# name -> (N, Cin, H, W, Cout, kernel, geometry): what test, benchmark and ahead-of-time check share
CASES: dict[str, tuple[int, int, int, int, int, tuple[int, int], Geometry]] = {
    "dcgan-64 from 1x1": (64, 100, 1, 1, 512, (4, 4), Geometry((1, 1), (0, 0))),
    "dcgan-64 from 4x4": (64, 512, 4, 4, 256, (4, 4), K4S2P1),
    "dcgan-64 from 8x8": (64, 256, 8, 8, 128, (4, 4), K4S2P1),
    "dcgan-64 from 16x16": (64, 128, 16, 16, 64, (4, 4), K4S2P1),
    "dcgan-64 to image": (64, 64, 32, 32, 3, (4, 4), K4S2P1),
    "odd sizes": (3, 5, 7, 9, 17, (4, 4), K4S2P1),
    "one sample": (1, 8, 5, 3, 96, (4, 4), K4S2P1),
    "one channel": (2, 3, 4, 6, 1, (4, 4), K4S2P1),
    "eight channels": (2, 17, 4, 4, 8, (4, 4), K4S2P1),
    "k3 s2 p1, output padding 1": (2, 6, 5, 4, 7, (3, 3), Geometry((2, 2), (1, 1), (1, 1))),
    "k5 s3 p0": (2, 4, 3, 5, 6, (5, 5), Geometry((3, 3), (0, 0))),
    "groups and dilation": (2, 6, 4, 5, 9, (3, 2), Geometry((2, 1), (1, 0), (0, 0), (2, 1), 3)),
    "vocoder, k16 s8": (2, 12, 1, 19, 6, (1, 16), Geometry((1, 8), (0, 4))),
    "k1 s1": (2, 4, 3, 3, 5, (1, 1), Geometry((1, 1), (0, 0))),
}


def reference(
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act_out: int,
    slope_out: float,
) -> Tensor:
    """y [N, Cout, H', W'] in the type of x."""
    a = batch_norm_act.reference(
        x, norm.mean, norm.var, norm.weight, norm.bias, norm.eps, norm.act, norm.slope, norm.training
    )
    g = geometry
    y = F.conv_transpose2d(a, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    return activate(y, act_out, slope_out)
