"""Pass 3, operation by operation: each activation's operations once more, at the slopes of the forward pass.

Let F(x, s) be the critic with every additive constant k replaced by s k. Where the slopes are fixed, F is linear in
(x, s), F(x, 1) is the critic, and a rule says what one operation does to values c of F:

    linear operations       run again on c
    constants               are added s_n times (`Affine`)
    selecting operations    (ReLU, maxima, clamp) select what they selected in the forward pass

An operation without a rule is not piecewise linear, or not known to be. At s = None the constants are left out: this is
the derivative along c.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastgan.sweep.graph import value_of
from fastgan.sweep.layout import Layout

aten = torch.ops.aten


@dataclass(frozen=True)
class Constant:
    """`times` * `value`, a leaf, in the shape `view` in which it is added."""

    value: Tensor
    view: tuple[int, ...]
    times: float = 1.0


@dataclass(frozen=True)
class Affine:
    """linear + sum_n s_n constants."""

    linear: Any
    constants: list[Constant] = field(default_factory=list)


@dataclass(frozen=True)
class At:
    """What a rule knows of its place.

    node:    the operation
    layout:  where the samples are in its result
    scale:   s [N], or None
    active:  the nodes that are activations
    forward: values of the forward pass by node
    """

    node: fx.Node
    layout: Layout
    scale: Tensor | None
    active: set[fx.Node]
    forward: dict[fx.Node, Any]

    def is_active(self, argument: int | fx.Node) -> bool:
        node = self.node.args[argument] if isinstance(argument, int) else argument
        return isinstance(node, fx.Node) and node in self.active

    @property
    def result(self) -> Any:
        """What the operation gave in the forward pass."""
        return self.forward[self.node]

    def input(self, argument: int = 0) -> Any:
        """What its argument was in the forward pass."""
        return self.forward[self.node.args[argument]]  # type: ignore[index]

    def scaled(self, constant: Any) -> Any:
        """s_n constant, in the shape of the result; the constant is a tensor or a number."""
        result = value_of(self.node)
        if isinstance(result, (tuple, list)):
            result = result[0]
        if self.scale is None:
            return torch.zeros((), dtype=result.dtype, device=result.device)
        return self.layout.spread(self.scale, result.dim()).to(result.dtype) * constant


Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule_of(node: fx.Node) -> Rule | None:
    return RULES.get(getattr(node.target, "overloadpacket", node.target))


def _rule(*packets: Any) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(packets, function))
        return function

    return add


NO_DERIVATIVE = {
    aten.detach, aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.sign, aten.sgn, aten.floor, aten.ceil,
    aten.round, aten.trunc, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like,
    aten.randn_like,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.isnan, aten.isfinite, aten.isinf, aten.argmax,
    aten.argmin, aten.bernoulli, aten.logical_not, aten.logical_and, aten.logical_or,
}  # fmt: skip
"""Operations whose derivative is zero: for the sweep their results are constants."""


# ---- linear in one argument, whatever the others are


@_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def _view(at: At, c: Tensor, shape: list[int]) -> Tensor:
    return c.reshape(shape)  # strides may differ from the forward pass


@_rule(aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze, aten.select, aten.slice, aten.expand,
       aten.clone, aten.alias, aten._to_copy, aten.sum, aten.mean, aten.cumsum, aten.flip, aten.roll, aten.neg,
       aten.split, aten.split_with_sizes, aten.unbind, aten.index_select, aten.lift_fresh_copy,
       aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d,
       aten.adaptive_avg_pool1d, aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d,
       aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d, aten.upsample_nearest1d,
       aten.upsample_nearest2d, aten.upsample_nearest3d, aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d,
       aten._upsample_nearest_exact3d, aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d,
       aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.pixel_shuffle,
       aten.pixel_unshuffle, aten.channel_shuffle, aten.im2col, aten.col2im)  # fmt: skip
def _again(at: At, *args: Any, **kwargs: Any) -> Any:
    return at.node.target(*args, **kwargs)  # type: ignore[operator]


@_rule(aten.index)
def _index(at: At, c: Tensor, indices: list[Any]) -> Any:
    return aten.index.Tensor(c, [None if i is None else i.detach() for i in indices])


@_rule(aten.gather)
def _gather(at: At, c: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    return c.gather(dim, index)


@_rule(operator.getitem)
def _getitem(at: At, c: Any, number: int) -> Any:
    return c[number]


@_rule(aten.mul, aten.mm, aten.bmm, aten.mv)
def _product(at: At, a: Any, b: Any) -> Any:
    if at.is_active(0) and at.is_active(1):
        return NotImplemented
    return at.node.target(a, b)  # type: ignore[operator]


@_rule(aten.div)
def _div(at: At, c: Any, by: Any, *, rounding_mode: str | None = None) -> Any:
    return NotImplemented if at.is_active(1) or rounding_mode else c / by


@_rule(aten.copy)
def _copy(at: At, into: Any, source: Any, non_blocking: bool = False) -> Any:
    if not at.is_active(1):
        return at.scaled(source).expand(value_of(at.node).shape)
    return aten.copy.default(into.detach(), source)


@_rule(aten.native_dropout)
def _dropout(at: At, c: Tensor, p: float, train: bool | None) -> Any:
    return (c * at.result[1] * (1 / (1 - p)) if train and p < 1 else c * (p < 1), None)


@_rule(aten.masked_fill)
def _masked_fill(at: At, c: Any, mask: Tensor, value: Any) -> Any:
    if at.is_active(1) or (isinstance(value, Tensor) and value.requires_grad):
        return NotImplemented
    return torch.where(mask, at.scaled(value), c)


# ---- sums, in which constants are scaled


def _shape_in(at: At, constant: Any) -> tuple[int, ...]:
    """The shape of a constant as it is added: its own, aligned on the right."""
    dims: int = value_of(at.node).dim()
    shape: tuple[int, ...] = tuple(constant.shape)
    return (1,) * (dims - len(shape)) + shape


def _sum(at: At, a: Any, b: Any, times_a: float, times_b: float) -> Any:
    if at.is_active(0) and at.is_active(1):
        return a * times_a + b * times_b if times_a != 1 else torch.add(a, b, alpha=times_b)
    c, times_c, k, times_k = (a, times_a, b, times_b) if at.is_active(0) else (b, times_b, a, times_a)
    result = value_of(at.node)
    c = c.to(result.dtype)
    c = (c if times_c == 1 else c * times_c).expand(result.shape)
    if not isinstance(k, Tensor):
        k = torch.full((), k, dtype=result.dtype, device=result.device)
    return Affine(c, [Constant(k, _shape_in(at, k), times_k)])


@_rule(aten.add)
def _add(at: At, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(at, a, b, 1, alpha)


@_rule(aten.sub)
def _sub(at: At, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(at, a, b, 1, -alpha)


@_rule(aten.rsub)
def _rsub(at: At, a: Any, b: Any, alpha: float = 1) -> Any:
    return _sum(at, a, b, -alpha, 1)


@_rule(aten.addcmul)
def _addcmul(at: At, a: Any, b: Any, d: Any, *, value: float = 1) -> Any:
    if at.is_active(1) and at.is_active(2):
        return NotImplemented
    product = value * b * d
    if not (at.is_active(1) or at.is_active(2)):
        product = at.scaled(product)
    return (a if at.is_active(0) else at.scaled(a)) + product


@_rule(aten.lerp)
def _lerp(at: At, a: Any, b: Any, weight: Any) -> Any:
    if at.is_active(2):
        return NotImplemented
    start, end = (v if at.is_active(i) else at.scaled(v) for i, v in enumerate((a, b)))
    return torch.lerp(start, end, weight)


@_rule(aten.convolution)
def _convolution(at: At, c: Any, weight: Any, bias: Any, *options: Any) -> Any:
    if not at.is_active(0) or at.is_active(1) or at.is_active(2):
        return NotImplemented
    out = aten.convolution.default(c, weight, None, *options)
    return out if bias is None else Affine(out, [Constant(bias, (1, -1) + (1,) * (out.dim() - 2))])


@_rule(aten.addmm, aten.baddbmm, aten.addmv)
def _matrix_and_bias(at: At, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if at.is_active(1) and at.is_active(2):
        return NotImplemented
    product = a @ b
    if not (at.is_active(1) or at.is_active(2)):
        return at.scaled(alpha * product) + beta * bias
    product = product if alpha == 1 else alpha * product
    if at.is_active(0):
        return product + beta * bias
    return Affine(product, [Constant(bias, _shape_in(at, bias), beta)])


@_rule(aten.constant_pad_nd)
def _pad(at: At, c: Tensor, pad: list[int], value: float = 0) -> Any:
    padded = aten.constant_pad_nd.default(c, pad, 0)
    if not value or at.scale is None:
        return padded
    inside = torch.zeros(
        [1 if d == at.layout.dim else n for d, n in enumerate(c.shape)], dtype=c.dtype, device=c.device
    )
    frame = aten.constant_pad_nd.default(inside, pad, value)
    return Affine(padded, [Constant(frame, tuple(frame.shape))])


def _pieces(at: At, pieces: list[Any]) -> list[Any]:
    """The tensors of a list, constants scaled."""
    shaped = []
    for node, piece in zip(at.node.args[0], pieces, strict=True):  # type: ignore[arg-type]
        if node in at.active:
            shaped.append(piece)
        elif at.scale is None:
            shaped.append(torch.zeros_like(piece))
        else:
            dim = at.layout.dim
            if (
                at.node.target is aten.stack.default
                and at.node.args[1:]
                and at.node.args[1] % piece.dim() <= dim
                and dim > 0
            ):
                dim -= 1
            spread = Layout(dim, at.layout.outer, at.layout.inner).spread(at.scale, piece.dim())
            shaped.append(piece * spread.to(piece.dtype))
    return shaped


@_rule(aten.cat, aten.stack)
def _joined(at: At, pieces: list[Any], dim: int = 0) -> Any:
    return at.node.target(_pieces(at, pieces), dim)  # type: ignore[operator]


@_rule(aten.slice_scatter, aten.select_scatter)
def _scatter(at: At, into: Any, source: Any, *where: Any) -> Any:
    if not at.is_active(0):
        into = at.scaled(into).expand(value_of(at.node).shape)
    if not at.is_active(1):
        spread = torch.zeros_like(source)
        if at.scale is not None:
            layout = at.layout
            if at.node.target is aten.select_scatter.default and where and where[0] < layout.dim:
                layout = Layout(layout.dim - 1, layout.outer, layout.inner)
            spread = layout.spread(at.scale, source.dim()).to(source.dtype) * source
        source = spread
    return at.node.target(into, source, *where)  # type: ignore[operator]


@_rule(aten.native_batch_norm, aten._native_batch_norm_legit_no_training)
def _batch_norm_of_fixed_statistics(at: At, c: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Any:
    training, eps = (rest[0], rest[2]) if len(rest) == 3 else (False, rest[1])
    if training:
        return NotImplemented
    shape = [-1] + [1] * (c.dim() - 2)
    factor = torch.rsqrt(var + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    out = c * factor.view(shape).to(c.dtype)
    if at.scale is not None:
        out = out + at.layout.spread(at.scale, c.dim()).to(c.dtype) * shift.view(shape).to(c.dtype)
    return (out, None, None)


# ---- selecting: the slopes of the forward pass


@_rule(aten.relu, aten.leaky_relu, aten.abs)
def _kinked(at: At, c: Tensor, *options: Any) -> Tensor:
    """Through 0: the slope times c, which is what the operation's own backward does to c."""
    return _slope_times(at, c, options)


@_rule(aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh, aten.threshold, aten.hardshrink, aten.softshrink)
def _kinked_with_offset(at: At, c: Tensor, *options: Any) -> Any:
    """f(z) = M z + o: M c + s o."""
    if any(isinstance(option, Tensor) for option in options):
        return NotImplemented
    out = _slope_times(at, c, options)
    if at.scale is None:
        return out
    offset = at.result - _slope_times(at, at.input(), options)
    return out + at.layout.spread(at.scale, c.dim()).to(c.dtype) * offset


def _slope_times(at: At, c: Tensor, options: tuple[Any, ...]) -> Tensor:
    z = at.input().detach().requires_grad_()
    out = at.node.target(z, *options)  # type: ignore[operator]
    product: Tensor = torch.autograd.grad(out, z, c)[0]
    return product


@_rule(aten._prelu_kernel)
def _prelu(at: At, c: Tensor, weight: Tensor) -> Any:
    return NotImplemented if at.is_active(1) else torch.where(at.input() >= 0, c, weight * c)  # autograd's second order


@_rule(aten.where)
def _where(at: At, condition: Tensor, a: Any, b: Any) -> Any:
    return torch.where(condition, *(v if at.is_active(i) else at.scaled(v) for i, v in ((1, a), (2, b))))


@_rule(aten.maximum, aten.minimum)
def _extremum_of_two(at: At, a: Any, b: Any) -> Any:
    """The larger; at a tie half of both, as autograd has it."""
    z, y = (at.forward[n] for n in at.node.args)  # type: ignore[index]
    chosen = (z > y) if at.node.target is aten.maximum.default else (z < y)
    share = chosen.to(a.dtype) + 0.5 * (z == y).to(a.dtype)
    a, b = (v if at.is_active(i) else at.scaled(v) for i, v in enumerate((a, b)))
    return a * share + b * (1 - share)


@_rule(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
def _max_pool(at: At, c: Tensor, *options: Any) -> Any:
    indices = at.result[1]
    dims = 3 if "3d" in str(at.node.target) else 2
    picked = c.flatten(-dims).gather(-1, indices.flatten(-dims))
    return (picked.view(indices.shape), None)


@_rule(aten.amax, aten.amin)
def _extremum(at: At, c: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    """The extreme elements, of which ties share, as autograd has it."""
    z, dims = at.input(), [dim] if isinstance(dim, int) else list(dim or range(c.dim()))
    extreme = at.node.target(z, dims, True)  # type: ignore[operator]
    share = (z == extreme).to(c.dtype)
    share = share / share.sum(dims, keepdim=True)
    return (c * share).sum(dims, keepdim=keepdim)


@_rule(aten.max, aten.min)
def _extremum_with_index(at: At, c: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        return NotImplemented
    indices = at.result[1]
    picked = c.gather(dim, indices if keepdim else indices.unsqueeze(dim))
    return (picked if keepdim else picked.squeeze(dim), None)
