"""The rest of the operations: shapes, sums, constants, in-place operations, dropout, casts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sweep.rules import (
    ACTIVATIONS,
    CONVOLUTIONS,
    POOLING,
    PRODUCTS,
    RESAMPLING,
    WEIGHTS,
    Op,
    normal,
    op,
    plain,
)
from torch import Tensor, nn
from torch.nn import functional as F

SHAPES: dict[str, Callable[[], nn.Module]] = {
    "view": plain(lambda x: x.view(len(x), 8, -1)),
    "reshape of a permutation": plain(lambda x: x.permute(0, 3, 1, 2).reshape(x.shape[0], -1)),
    "transpose": plain(lambda x: x.transpose(1, -1).contiguous()),
    "unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (12, 3, 4)), nn.Conv2d(12, 2, 2)),
    "unsqueeze, squeeze, expand": plain(lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1)[:, :, 1:].squeeze(2)),
    "expand over new pixels": plain(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 2)),
    "slices": plain(lambda x: x[:, 1:, ::2, 1:-1]),
    "select and narrow": plain(lambda x: x[:, 0].narrow(1, 1, 4) + x[:, -1, 1:5]),
    "channels by a list": plain(lambda x: x[:, [2, 0, 1, 2]]),
    "index select": lambda: Op(lambda m, x: x.index_select(3, m.columns), columns=torch.tensor([5, 0, 3])),
    "cat": lambda: Op(lambda m, x: torch.cat([x, m.conv(x), x.neg()], 1), conv=nn.Conv2d(4, 2, 1)),
    "cat with constants": lambda: Op(
        lambda m, x: torch.cat([x, m.ramp.expand(len(x), -1, -1, -1)], 1), ramp=normal(1, 2, 6, 6)
    ),
    "stack": lambda: Op(lambda m, x: torch.stack([x, m.conv(x)], 2), conv=nn.Conv2d(4, 4, 1)),
    "chunk": plain(lambda x: x.chunk(2, 1)[0] - 2 * x.chunk(2, 1)[1]),
    "split and unbind": plain(lambda x: x.split([1, 3], 1)[1].sum(1) + torch.unbind(x, 1)[2]),
    "roll over pixels": plain(lambda x: x.roll((1, -2), (2, 3))),
    "flip of pixels": plain(lambda x: x.flip(3) - x.flip(1)),
    "repeat and tile": plain(lambda x: x.repeat(1, 2, 1, 1).tile(1, 1, 1, 2)),
    "repeat interleave": plain(lambda x: x.repeat_interleave(2, 2)),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "pixel unshuffle": lambda: nn.PixelUnshuffle(3),
    "identity": nn.Identity,
    "rotate": plain(lambda x: torch.rot90(x, 1, (2, 3))),
    "unfold": plain(lambda x: x.unfold(2, 3, 2)),
}

SUMS: dict[str, Callable[[], nn.Module]] = {
    "sum over pixels": plain(lambda x: x.sum((2, 3))),
    "mean over channels": plain(lambda x: x.mean(1, keepdim=True)),
    "mean over everything but samples": plain(lambda x: x.flatten(1).mean(1, keepdim=True)),
    "amax": plain(lambda x: x.amax((2, 3))),
    "amin": plain(lambda x: x.amin(1)),
    "max over a dimension": plain(lambda x: x.max(2).values),
    "min over a dimension": plain(lambda x: x.min(3, keepdim=True).values),
    "largest of two sums": plain(lambda x: torch.stack([x.sum(1), x[:, 0]]).amax(0)),
}

CONSTANTS: dict[str, Callable[[], nn.Module]] = {
    "plus 1": plain(lambda x: x + 1),
    "2 minus": plain(lambda x: 2 - x),
    "1 minus, as rsub": plain(lambda x: torch.rsub(x, 1.5, alpha=0.5)),
    "subtract with alpha": op(lambda m, x: torch.sub(x, m.b, alpha=0.5), b=(4, 1, 1)),
    "times a buffer": lambda: Op(lambda m, x: x * m.k + m.k.square(), k=normal(4, 6, 6)),
    "divided": lambda: Op(lambda m, x: x / m.k / 3, k=normal(6, 6).abs() + 0.5),
    "minus a map": op(lambda m, x: x - m.map, map=(4, 6, 6)),
    "times a map": op(lambda m, x: x * m.map, map=(4, 6, 6)),
    "a map minus": op(lambda m, x: m.map - x, map=(6,)),
    "divided by a parameter": op(lambda m, x: x / (m.w.abs() + 0.5), w=(4, 1, 1)),
    "times a scalar parameter": op(lambda m, x: x * m.gain + m.offset, gain=(), offset=()),
    "gain and offset": op(lambda m, x: (x + m.b) * m.g - m.b, b=(4, 1, 1), g=(1, 4, 1, 1)),
    "lerp": op(lambda m, x: torch.lerp(x, m.map, 0.3), map=(6, 6)),
    "addcmul": op(lambda m, x: torch.addcmul(m.map, x, m.gain, value=0.7), map=(6, 6), gain=(4, 1, 1)),
    "coordinates": plain(lambda x: torch.cat([x, torch.linspace(-1, 1, 6, dtype=x.dtype).expand(len(x), 1, 6, 6)], 1)),
    "ones like": plain(lambda x: torch.cat([x, torch.ones_like(x[:, :1])], 1) + torch.zeros_like(x[:, :1])),
    "new ones": plain(lambda x: torch.cat([x.flatten(1), 0.5 * x.new_ones(x.shape[0], 3)], 1)),
    "negated": plain(lambda x: -x),
    "sum of three": plain(lambda x: x + x.flip(2) + 0.5 * x.mean((2, 3), keepdim=True)),
    "a constant branch": op(lambda m, x: x + F.relu(F.conv2d(m.image, m.w)), image=(1, 1, 6, 6), w=(4, 1, 1, 1)),
}


def in_place(m: Op, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.add_(0.3).mul_(m.gain)
    F.leaky_relu_(y, 0.2)
    z = 2 * y
    z += x[:, :1]
    z.clamp_(-1.0, 2.5).sub_(m.gain)
    return torch.relu_(z)


def by_attribute(m: Op, x: Tensor) -> Tensor:
    if m.flag and x.shape[2] > 3:
        return m.conv(x)
    return x


FORMS: dict[str, Callable[[], nn.Module]] = {
    "in place": lambda: Op(in_place, conv=nn.Conv2d(4, 4, 3, padding=1), gain=nn.Parameter(normal(4, 1, 1))),
    "in-place modules": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(4, 4, 1), nn.ReLU6(True), nn.Conv2d(4, 3, 1), nn.ReLU(True)
    ),
    "branch on an attribute": lambda: Op(by_attribute, conv=nn.Conv2d(4, 2, 3), flag=True),
    "a loop of layers": lambda: Op(
        lambda m, x: [x := x + F.relu(layer(x)) for layer in m.layers][-1],
        layers=nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]),
    ),
    "dictionary of features": lambda: Op(
        lambda m, x: sum({"a": m.conv(x), "b": 2 * m.conv(x.flip(3))}.values()), conv=nn.Conv2d(4, 2, 3)
    ),
    "layer on an unused output": lambda: Op(lambda m, x: (m.used(x), m.unused(x))[0], used=nn.Conv2d(4, 2, 3),
                                            unused=nn.Conv2d(4, 2, 3)),
    "identity cast": plain(lambda x: x.double().to(torch.float64).type_as(x)),
    "clone and contiguous": plain(lambda x: x.clone().contiguous() + x.to(x.device)),
}  # fmt: skip

RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "dropout of maps": lambda: nn.Dropout2d(0.4),
    "dropout in place": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5, inplace=True)),
    "two dropouts": lambda: nn.Sequential(nn.Dropout(0.2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Dropout2d(0.3)),
    "added noise": op(lambda m, x: x + m.strength * torch.randn_like(x[:, :1]), strength=()),
}

RULES: dict[str, Callable[[], nn.Module]] = {
    **CONVOLUTIONS,
    **PRODUCTS,
    **ACTIVATIONS,
    **POOLING,
    **RESAMPLING,
    **WEIGHTS,
    **SHAPES,
    **SUMS,
    **CONSTANTS,
    **FORMS,
    **RANDOM,
}

EXACT_OR_REFUSED: dict[str, Callable[[], nn.Module]] = {
    "softshrink": lambda: nn.Softshrink(0.2),
    "hardshrink": lambda: nn.Hardshrink(0.2),
    "hardswish": plain(F.hardswish),
    "celu": nn.CELU,
    "rrelu": nn.RReLU,
    "sign": plain(lambda x: x * x.sign()),
    "norm over channels": plain(lambda x: x.norm(dim=1)),
    "norm 1": plain(lambda x: x.norm(p=1, dim=1)),
    "standard deviation of pixels": plain(lambda x: x.std((2, 3))),
    "pixel norm": plain(lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)),
    "product of activations": plain(lambda x: x * x.flip(2)),
    "ratio of activations": plain(lambda x: x / (x.flip(3).abs() + 1)),
    "reciprocal": plain(lambda x: 1 / (x.abs() + 1)),
    "gated": plain(lambda x: F.glu(x, 1)),
    "bilinear": lambda: Op(lambda m, x: m.layer(x.flatten(1), x.flatten(1)), layer=nn.Bilinear(144, 144, 2)),
    "gram matrix": plain(lambda x: x.flatten(2) @ x.flatten(2).mT),
    "cumulative sum": plain(lambda x: x.cumsum(2)),
    "product": plain(lambda x: x.mean((2, 3)).prod(1, keepdim=True)),
    "sorted": plain(lambda x: x.flatten(2).sort(2).values),
    "largest three": plain(lambda x: x.flatten(2).topk(3, 2).values),
    "median": plain(lambda x: x.flatten(1).median(1, keepdim=True).values),
    "detached branch": plain(lambda x: x + 2 * x.flip(3).detach()),
    "straight through": plain(lambda x: x + (x.round() - x).detach()),
    "branch without grad": lambda: Op(
        lambda m, x: x + _without_grad(m.conv, x), conv=nn.Conv2d(4, 4, 3, padding=1)
    ),
    "assignment to a slice": lambda: Op(lambda m, x: _assigned(m.conv(x)), conv=nn.Conv2d(4, 4, 1)),
    "masked fill": plain(lambda x: x.masked_fill(x > 0.5, 0.25)),
    "gather": plain(lambda x: x.flatten(1).gather(1, torch.arange(5).expand(len(x), 5))),
    "fold": plain(lambda x: F.fold(F.unfold(x, 3), 6, 3)),
    "grid sample": plain(
        lambda x: F.grid_sample(x, torch.linspace(-1, 1, 18, dtype=x.dtype).view(1, 3, 3, 2).expand(len(x), 3, 3, 2),
                                align_corners=False)
    ),
    "sum of squares": plain(lambda x: x.square().sum((2, 3))),
    "arg max": plain(lambda x: x.sum(1) + x.flatten(1).argmax(1)[:, None, None]),
    "channels shuffled": lambda: nn.ChannelShuffle(2),
    "convolution 3d": lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv3d(1, 2, 3)),
    "samples as groups": op(
        lambda m, x: F.conv2d(x.reshape(1, -1, 6, 6), m.w.repeat(len(x), 1, 1, 1), groups=len(x)).view(
            len(x), 3, 4, 4
        ),
        w=(3, 4, 3, 3),
    ),
    "samples and channels merged": lambda: Op(
        lambda m, x: m.conv(x.flatten(0, 1)[:, None]).view(len(x), -1, 4, 4), conv=nn.Conv2d(1, 2, 3)
    ),
    "samples and rows merged": lambda: Op(
        lambda m, x: m.layer(x.permute(0, 2, 3, 1).reshape(-1, 4)).relu().view(len(x), -1), layer=nn.Linear(4, 3)
    ),
    "pixels before samples": lambda: Op(
        lambda m, x: m.layer(x.permute(2, 3, 0, 1).reshape(-1, 4)).view(36, len(x), 3).mean(0), layer=nn.Linear(4, 3)
    ),
    "channels before samples": plain(lambda x: (x.transpose(0, 1) * 2 + 1).transpose(0, 1).contiguous()),
    "recurrent": lambda: Op(lambda m, x: m.layer(x.flatten(2).mT)[1][0], layer=nn.RNN(4, 3, nonlinearity="relu",
                                                                                        batch_first=True)),
    "samples in the last dimension": plain(lambda x: (x.permute(1, 2, 3, 0) + 1).permute(3, 0, 1, 2)),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "fractional max pool": lambda: nn.FractionalMaxPool2d(2, output_ratio=0.6),
    "inner branch on values": plain(lambda x: x * 2 if x.sum() > 0 else x),
    "parameter clamped by an activation": op(lambda m, x: torch.clamp(m.w, max=x), w=(4, 6, 6)),
    "power 1": plain(lambda x: x**1),
    "polar": plain(lambda x: torch.complex(x, x.flip(2)).real),
    "fourier features": plain(lambda x: torch.fft.rfft2(x).real),
}  # fmt: skip
"""Whatever the sweep makes of these, it is exact, or refused by name; never approximately right."""


def _without_grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def _assigned(x: Tensor) -> Tensor:
    x[:, 1:3, ::2] = 0.5 * x[:, :2, 1::2]
    x[:, 0, 0] = 0.25
    return x
