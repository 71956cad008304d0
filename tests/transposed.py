"""Runs the Triton kernels of the transposed convolution, in the interpreter or on a GPU, beside PyTorch.

As a script (TRITON_INTERPRET=1): `python transposed.py TABLE VERSION` checks the cases of one table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels.activations import activate
from fastgan.kernels.conv_transpose_bn_act import triton as ours
from fastgan.kernels.conv_transpose_bn_act.phases import Tile, phases_of

NONE, RELU, LEAKY_RELU, TANH, SIGMOID, SILU, GELU = range(7)
SLOPE = 0.25


@dataclass(frozen=True)
class Case:
    """x [n, cin, *size]; kernel, stride, padding, output padding in `k`; norm: a normalisation is in the prologue."""

    n: int
    cin: int
    cout: int
    size: tuple[int, ...]
    k: tuple[int, int, int, int] = (4, 2, 1, 0)
    norm: bool = True
    act_in: int = LEAKY_RELU
    act_out: int = NONE
    statistics: bool = True


@dataclass(frozen=True)
class Outcome:
    """One result: of our kernels, in float64, and of PyTorch in the type of the case."""

    name: str
    ours: Tensor
    exact: Tensor
    eager: Tensor

    @property
    def errors(self) -> tuple[float, float]:
        """Of ours and of PyTorch, relative to the norm of the exact result."""
        norm = self.exact.norm()
        return tuple(((t.double() - self.exact).norm() / norm).item() for t in (self.ours, self.eager))


def outcomes(case: Case, dtype: torch.dtype, device: str, how: ours.How, twice: bool = True) -> Iterator[Outcome]:
    """Forward, statistics, input gradient and weight gradient. twice: are made twice, and have to be the same."""
    torch.manual_seed(0)
    dims = len(case.size)
    kernel, stride, padding, extra = ((v,) * dims for v in case.k)
    phases = phases_of(kernel, stride, padding, extra)
    assert phases is not None
    layout = torch.channels_last if dims == 2 else torch.contiguous_format
    x = torch.randn(case.n, case.cin, *case.size, device=device).to(dtype).contiguous(memory_format=layout)
    weight = (torch.randn(case.cin, case.cout, *kernel, device=device) / case.cin**0.5).to(dtype)
    bias = torch.randn(case.cout, device=device)
    vectors = [torch.randn(case.cin, device=device) for _ in range(4)] if case.norm else [None] * 4
    mean, var = (None, None) if vectors[0] is None else (vectors[0].double(), vectors[1].double() ** 2 + 0.1)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    prologue = ours.prologue_of(mean, var, *vectors[2:], 1e-5, case.act_in, SLOPE, arithmetic)

    def layer(kind: torch.dtype) -> tuple[Tensor, ...]:
        """y and, for the gradient g of the convolution's output, the gradients of its input and weight."""
        work = torch.float64 if kind == torch.float64 else arithmetic
        a = x.to(work)
        if mean is not None:
            a, of = a.movedim(1, -1), [v.to(work) for v in vectors[2:]]
            a = ((a - mean.to(work)) / (var.to(work) + 1e-5).sqrt() * of[0] + of[1]).movedim(-1, 1)
        a = activate(a, case.act_in, SLOPE).to(kind).requires_grad_()
        w = weight.to(kind).requires_grad_()
        run = F.conv_transpose2d if dims == 2 else F.conv_transpose1d
        z = run(a, w, bias.to(kind), stride, padding, extra)
        return activate(z, case.act_out, SLOPE).detach(), *torch.autograd.grad(z, (a, w), g.to(kind))

    def made() -> tuple[Tensor | None, ...]:
        done = ours.forward(
            x, weight, bias, phases, prologue,
            act=case.act_out, slope=SLOPE, want_stats=case.statistics, how=how,
        )  # fmt: skip
        return *done, ours.input_gradient(g, weight, phases, how=how), weight_gradient()

    def weight_gradient() -> Tensor:
        few = ours.How(how.capability, how.descriptors, how.tile, None if how.tile is None else 3)
        return ours.weight_gradient(x, g, phases, prologue, dtype=arithmetic, how=few)

    shape = (case.n, case.cout, *(s * stride[0] for s in case.size))
    g = torch.randn(shape, device=device).to(dtype)
    first = made()
    for one, two in zip(first, made() if twice else first, strict=True):
        assert one is None or torch.equal(one, two), "two runs differ"
    y, y_mean, y_var, dx, dw = first
    exact, eager = layer(torch.float64), layer(dtype)
    for name, one, two, three in zip(("y", "dx", "dw"), (y, dx, dw), exact, eager, strict=True):
        assert one.shape == two.shape, name
        yield Outcome(name, one, two, three)
    if case.statistics:
        over = [0, *range(2, y.dim())]
        var, mean = torch.var_mean(y.double(), over, correction=0)
        yield Outcome("mean", y_mean, mean, mean)
        yield Outcome("var", y_var, var, var)


HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64
# Tiny, for the interpreter. Odd sizes, channels that are not multiples of the tile, one sample, one pixel
TABLES: dict[str, list[tuple[Case, torch.dtype]]] = {
    "layers": [
        (Case(1, 16, 16, (4, 4), norm=False, act_in=NONE), SINGLE),
        (Case(3, 16, 16, (2, 4)), HALF),
        (Case(2, 24, 16, (2, 3), act_in=RELU), SINGLE),
        (Case(1, 8, 24, (13,), (16, 8, 4, 0)), SINGLE),
        (Case(1, 8, 8, (1, 1), act_in=NONE, act_out=RELU, statistics=False), SINGLE),
    ],
    "odd": [
        (Case(1, 17, 17, (3, 5), act_in=TANH), DOUBLE),
        (Case(2, 5, 8, (3, 2), (2, 2, 0, 0), norm=False, act_in=SILU, act_out=GELU, statistics=False), DOUBLE),
        (Case(1, 5, 3, (3, 5), (3, 1, 1, 0), act_in=SIGMOID), DOUBLE),
        (Case(1, 5, 8, (1, 2), (6, 3, 2, 1), act_in=GELU, act_out=SIGMOID, statistics=False), DOUBLE),
        (Case(1, 3, 5, (7,), (8, 4, 2, 0), act_in=NONE, act_out=SILU, statistics=False), DOUBLE),
        (Case(2, 24, 1, (5, 3)), SINGLE),
    ],
    "image": [
        (Case(2, 24, 3, (3, 5), act_out=TANH, statistics=False), SINGLE),
        (Case(1, 8, 3, (6, 5), act_out=TANH, statistics=False), HALF),
        (Case(1, 5, 1, (7, 4), norm=False, act_in=NONE, statistics=False), DOUBLE),
        (Case(1, 5, 2, (19,), (8, 4, 2, 0), statistics=False), DOUBLE),
        (Case(1, 5, 4, (2, 2), (2, 2, 0, 0), act_out=RELU, statistics=False), DOUBLE),
    ],
}
BOUNDS = {SINGLE: 1e-5, DOUBLE: 1e-8}


def main(table: str, version: str) -> None:
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    how = ours.How(90, version == "descriptors", Tile(16, 16, 16, 4, 2))
    for number, (case, dtype) in enumerate(TABLES[table]):
        for of in outcomes(case, dtype, "cpu", how, twice=number == 0):
            error, eager = of.errors
            bound = BOUNDS.get(dtype, 2 * eager) if of.name in ("y", "dx", "dw") else 1e-6
            assert error <= bound, f"{case}, {dtype}: {of.name} is off by {error}, more than {bound}"


if __name__ == "__main__":
    main(*sys.argv[1:])
