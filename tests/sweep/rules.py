"""One small critic per operation: the operation between a convolution and two linear layers, with kinks around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from sweep.compare import F64, spread
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

Body: TypeAlias = Callable[..., Tensor]

SHAPE = (4, 6, 6)
"""What the operation under test gets, per sample."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weight(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(0.5 * normal(*shape, seed=seed))


class Op(nn.Module):
    """x -> body(self, x), with parameters, buffers (tensors) and submodules by name."""

    def __init__(self, body: Body, **members: Any) -> None:
        super().__init__()
        self.body = body
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Around(nn.Module):
    """x [N, 3, 6, 6] -> [N, 1]: convolution, leaky ReLU, the operation, linear, leaky ReLU, linear.

    Several operations stand side by side and their logits are added.
    """

    def __init__(self, *acts: nn.Module) -> None:
        super().__init__()
        self.enter, self.acts = nn.Conv2d(3, SHAPE[0], 3, padding=1), nn.ModuleList(acts)
        with torch.no_grad():
            features = [act(torch.zeros(1, *SHAPE, dtype=F64)).double().flatten(1).shape[1] for act in acts]
        self.hidden = nn.ModuleList([nn.Linear(count, 6) for count in features])
        self.out = nn.ModuleList([nn.Linear(6, 1) for _ in features])

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.enter(x), 0.2)
        heads = [out(F.leaky_relu(hidden(act(x).flatten(1)), 0.1))
                 for act, hidden, out in zip(self.acts, self.hidden, self.out, strict=True)]  # fmt: skip
        return sum(heads[1:], start=heads[0])


def around(*makes: Callable[[], nn.Module], seed: int = 0, training: bool = True) -> nn.Module:
    """The operations in their critic, float64."""
    torch.manual_seed(seed)
    return spread(Around(*(make().double() for make in makes)), seed).train(training)


def plain(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A function of activations alone."""
    return lambda: Op(lambda _, x: function(x))


def op(body: Body, **shapes: tuple[int, ...]) -> Callable[[], nn.Module]:
    """A function of activations and parameters of the given shapes."""
    return lambda: Op(body, **{name: weight(*shape) for name, shape in shapes.items()})


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "conv strided": lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1),
    "conv grouped dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
    "conv depthwise, no bias": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "conv uneven": lambda: nn.Conv2d(4, 3, (3, 2), stride=(1, 2), padding=(0, 1)),
    "conv same": lambda: nn.Conv2d(4, 3, 3, dilation=2, padding="same"),
    "conv reflect": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    "conv circular": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    "conv replicate": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate"),
    "conv 1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 5, stride=3, padding=2, groups=2)),
    "conv 1d dilated": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 3, dilation=4)),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
    "transposed output padding": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, groups=2),
    "transposed dilated": lambda: nn.ConvTranspose2d(4, 2, 3, dilation=2, bias=False),
    "transposed 1d": lambda: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(4, 3, 5, 3, 1, output_padding=2)),
    "blur by a buffer": lambda: Op(
        lambda m, x: F.conv2d(F.pad(x, (1, 2, 1, 2)), m.taps.expand(4, 1, 4, 4), groups=4, stride=2),
        taps=normal(1, 1, 4, 4),
    ),
}

PRODUCTS: dict[str, Callable[[], nn.Module]] = {
    "matmul": op(lambda m, x: x.flatten(2) @ m.w, w=(36, 5)),
    "matmul from the left": op(lambda m, x: m.w @ x.flatten(2), w=(5, 4)),
    "matmul on images": op(lambda m, x: m.w @ x @ m.v, w=(5, 6), v=(6, 3)),
    "matrix times vector": op(lambda m, x: (x.flatten(1) @ m.w)[:, None], w=(144,)),
    "mm and t": op(lambda m, x: torch.mm(x.flatten(1), m.w.t()), w=(5, 144)),
    "addmm": op(lambda m, x: torch.addmm(m.b, x.flatten(1), m.w), w=(144, 5), b=(5,)),
    "addmm scaled": op(lambda m, x: torch.addmm(m.b, x.flatten(1), m.w, beta=0.5, alpha=-2), w=(144, 5), b=(5,)),
    "bmm": op(lambda m, x: torch.bmm(x.flatten(2), m.w.expand(len(x), -1, -1)), w=(1, 36, 5)),
    "baddbmm": op(
        lambda m, x: torch.baddbmm(m.b, x.flatten(2), m.w.expand(len(x), -1, -1), beta=0.3, alpha=1.5),
        w=(1, 36, 5),
        b=(1, 4, 5),
    ),
    "einsum": op(lambda m, x: torch.einsum("nchw,chd->nwd", x, m.w), w=(4, 6, 3)),
    "einsum over pixels": op(lambda m, x: torch.einsum("nchw,whk->nck", x, m.w), w=(6, 6, 2)),
    "tensordot": op(lambda m, x: torch.tensordot(x, m.w, dims=([1, 3], [0, 1])), w=(4, 6, 3)),
    "linear on [N, T, C]": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 5)),
    "linear on [N, T, C], no bias": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 5, bias=False)),
    "linear over channels last": lambda: Op(lambda m, x: m.layer(x.permute(0, 2, 3, 1)), layer=nn.Linear(4, 5)),
    "inner product": op(lambda m, x: (x * m.w).sum((2, 3)), w=(1, 4, 6, 6)),
    "outer product": op(lambda m, x: x.mean(1)[..., None] * m.w, w=(3,)),
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.3),
    "leaky relu, negative slope": plain(lambda x: F.leaky_relu(x, -0.5)),
    "prelu": lambda: nn.PReLU(),
    "prelu per channel": lambda: nn.PReLU(4, init=0.4),
    "relu6": plain(lambda x: F.relu6(8 * x)),
    "hardtanh": plain(lambda x: F.hardtanh(x, -0.3, 0.5)),
    "clamp": plain(lambda x: x.clamp(-0.2, 0.6)),
    "clamp below": plain(lambda x: x.clamp(min=-0.2)),
    "clamp above": plain(lambda x: torch.clamp(x, max=0.3)),
    "threshold": plain(lambda x: F.threshold(x, 0.1, 0.7)),
    "abs": plain(lambda x: (x - 0.2).abs()),
    "where on its own sign": op(lambda m, x: torch.where(x > 0.1, x * m.a, x * m.b + 1), a=(4, 1, 1), b=(4, 1, 1)),
    "where with a fixed mask": lambda: Op(
        lambda m, x: torch.where(m.mask, x, torch.full_like(x, 0.3)), mask=normal(6, 6) > 0
    ),
    "maxout": lambda: Op(
        lambda m, x: torch.maximum(m.first(x), m.second(x)), first=nn.Conv2d(4, 3, 3), second=nn.Conv2d(4, 3, 3)
    ),
    "minimum with a parameter": op(lambda m, x: torch.minimum(x, m.cap), cap=(4, 1, 1)),
    "masked by its sign": plain(lambda x: x * (x > 0.2)),
}

POOLING: dict[str, Callable[[], nn.Module]] = {
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool overlapping": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max pool ceil": lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True),
    "max pool dilated": lambda: nn.MaxPool2d(2, stride=1, dilation=2),
    "max pool 1d": lambda: nn.Sequential(nn.Flatten(2), nn.MaxPool1d(5, 3)),
    "avg pool": lambda: nn.AvgPool2d(2),
    "avg pool padded": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "avg pool ceil": lambda: nn.AvgPool2d(4, stride=3, padding=1, ceil_mode=True, divisor_override=7),
    "avg pool 1d": lambda: nn.Sequential(nn.Flatten(2), nn.AvgPool1d(5, 3, padding=2)),
    "adaptive avg": lambda: nn.AdaptiveAvgPool2d(3),
    "adaptive avg, uneven": lambda: nn.AdaptiveAvgPool2d((4, 5)),
    "adaptive avg to 1": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((4, 3)),
    "adaptive avg 1d": lambda: nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(7)),
}

RESAMPLING: dict[str, Callable[[], nn.Module]] = {
    "nearest up": lambda: nn.Upsample(scale_factor=2),
    "nearest to a size": lambda: nn.Upsample(size=(4, 9)),
    "nearest down": plain(lambda x: F.interpolate(x, scale_factor=0.5)),
    "bilinear up": plain(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bilinear aligned": plain(lambda x: F.interpolate(x, size=(9, 4), mode="bilinear", align_corners=True)),
    "bilinear down": plain(lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear")),
    "bilinear antialias": plain(lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True)),
    "bicubic": plain(lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic")),
    "bicubic down": plain(lambda x: F.interpolate(x, size=(3, 4), mode="bicubic", align_corners=True)),
    "area": plain(lambda x: F.interpolate(x, size=(3, 4), mode="area")),
    "linear 1d": plain(lambda x: F.interpolate(x.flatten(2), size=50, mode="linear")),
    "pad with a value": plain(lambda x: F.pad(x, (1, 2, 0, 1), value=0.7)),
    "pad with zeros": lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    "pad negative": plain(lambda x: F.pad(x, (-1, 2, 1, -2), value=-0.4)),
    "pad reflect": lambda: nn.ReflectionPad2d(2),
    "pad replicate": lambda: nn.ReplicationPad2d((1, 2, 3, 0)),
    "pad circular": lambda: nn.CircularPad2d((2, 1, 0, 3)),
    "pad reflect 1d": lambda: nn.Sequential(nn.Flatten(2), nn.ReflectionPad1d((3, 5))),
    "pad of channels": plain(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)),
}


def reused() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(layer, nn.LeakyReLU(0.2), layer, nn.ReLU(), layer)


def standardised(m: Op, x: Tensor) -> Tensor:
    """Weight standardisation (arXiv:1903.10520)."""
    w = m.w - m.w.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), m.b)


WEIGHTS: dict[str, Callable[[], nn.Module]] = {
    "weight norm, old": lambda: torch.nn.utils.weight_norm(nn.Conv2d(4, 5, 3)),
    "weight norm": lambda: weight_norm(nn.Conv2d(4, 5, 3)),
    "spectral norm, old": lambda: torch.nn.utils.spectral_norm(nn.Conv2d(4, 5, 3)),
    "spectral norm": lambda: spectral_norm(nn.Conv2d(4, 5, 3), n_power_iterations=2),
    "spectral norm of a transposed convolution": lambda: spectral_norm(nn.ConvTranspose2d(4, 5, 3)),
    "orthogonal": lambda: nn.Sequential(nn.Flatten(), orthogonal(nn.Linear(144, 5), orthogonal_map="cayley")),
    "weight standardisation": op(standardised, w=(5, 4, 3, 3), b=(5,)),
    "normalised weights": op(lambda m, x: F.linear(x.flatten(1), F.normalize(m.w, dim=1)), w=(5, 144)),
    "low rank": op(lambda m, x: x.flatten(1) @ (m.a @ m.b), a=(144, 2), b=(2, 6)),
    "hypernetwork": lambda: Op(
        lambda m, x: F.conv2d(x, m.net(m.code).view(3, 4, 3, 3)),
        net=nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 108)),
        code=weight(3),
    ),
    "exponential gain": op(lambda m, x: x * m.log.exp(), log=(4, 1, 1)),
    "one weight in two layers": op(lambda m, x: F.relu(x.flatten(2) @ m.w) @ m.w.t(), w=(36, 5)),
    "reused module": reused,
}
