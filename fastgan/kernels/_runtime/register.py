"""Registration of ops with torch, so that torch.compile, fake tensors, autograd and the dispatcher know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}
"""Op -> the same in PyTorch's differentiable operations, for who reads graphs (the shared sweep)."""

_LIBRARY: Any = torch.library.Library("fastgan", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    decomposition: Callable[..., Any] | None = None,
) -> None:
    """Makes `run` the op torch.ops.fastgan.<name in the schema> on the CPU and on CUDA devices.

    `run` is called with CPU tensors only, or with at least one CUDA tensor. What it writes to is marked in the schema,
    as in "scale_(Tensor(a!) x, float by) -> ()". `fake` is the same without numbers: new tensors of the right shapes.
    `backward(ctx, *gradients)` gives a gradient, or None, per input from what `setup_context(ctx, inputs, output)`
    saved; made of differentiable ops, it can be differentiated again. An op without it has no derivative.
    `decomposition` has the arguments of `run`: what stands for the op in DECOMPOSITIONS.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CPU")
    _LIBRARY.impl(name, run, "CUDA")
    torch.library.register_fake(f"fastgan::{name}", fake, lib=_LIBRARY)
    if backward:
        op = getattr(torch.ops.fastgan, name).default
        _LIBRARY.impl(name, _with_derivative(op, backward, setup_context), "Autograd", with_keyset=True)
    if decomposition:
        packet = getattr(torch.ops.fastgan, name)
        DECOMPOSITIONS[packet] = DECOMPOSITIONS[packet.default] = decomposition


def _with_derivative(op: Any, backward: Callable[..., Any], setup_context: Callable[..., Any] | None) -> Any:
    """What torch.library.register_autograd makes, at a fifth of its cost: that reads the schema at each call to fill in
    defaults, 0.3 ms for an op with 19 arguments."""
    defaults = tuple(argument.default_value for argument in op._schema.arguments)

    def run(keyset: Any, arguments: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx: Any, *arguments: Any) -> Any:
        *inputs, keyset = arguments
        output = run(keyset, tuple(inputs))
        ctx.inputs = len(inputs)
        if setup_context is not None:
            setup_context(ctx, (*inputs, *defaults[len(inputs) :]), output)  # the dispatcher leaves defaults out
        return output

    def differentiate(ctx: Any, *gradients: Any) -> Any:
        made = backward(ctx, *gradients)
        return (*made[: ctx.inputs], *[None] * (ctx.inputs - len(made)), None)

    names = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    function: Any = type(f"Backward of {op}", (torch.autograd.Function,), names)

    def dispatch(keyset: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return function.apply(*arguments, keyset)
        return run(keyset, arguments)

    return dispatch
