"""Registration of ops with torch, so that torch.compile, fake tensors, autograd and the dispatcher know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

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
) -> Callable[..., Any]:
    """Makes `run` the op torch.ops.fastgan.<name in the schema> on the CPU and on CUDA devices.

    `run` is called with CPU tensors only, or with at least one CUDA tensor. What it writes to is marked in the schema,
    as in "scale_(Tensor(a!) x, float by) -> ()". `fake` is the same without numbers: new tensors of the right shapes.
    `backward(ctx, *gradients)` gives a gradient, or None, per input from what `setup_context(ctx, inputs, output)`
    saved; made of differentiable ops, it can be differentiated again. Of `gradients` those of outputs that nothing
    depends on are None. An op without it has no derivative.
    `decomposition` has the arguments of `run`: what stands for the op in DECOMPOSITIONS.

    Returns the op as a function that gets all arguments by position. With ordinary tensors it does without the
    dispatcher, each passage of which costs 20 to 50 microseconds for an op in Python.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CPU")
    _LIBRARY.impl(name, run, "CUDA")
    torch.library.register_fake(f"fastgan::{name}", fake, lib=_LIBRARY)
    packet = getattr(torch.ops.fastgan, name)
    op = packet.default
    if decomposition:
        DECOMPOSITIONS[packet] = DECOMPOSITIONS[op] = decomposition
    if backward is None:
        return lambda *arguments: run(*arguments) if _ordinary(arguments) else op(*arguments)
    differentiable = _differentiable(op, run, backward, setup_context)
    _LIBRARY.impl(name, differentiable, "Autograd", with_keyset=True)
    return lambda *arguments: differentiable(None, *arguments) if _ordinary(arguments) else op(*arguments)


def _ordinary(arguments: Sequence[Any]) -> bool:
    """Whether nothing has to see the op: no compiler or other dispatch mode, no transformation, no special tensor."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:  # only the dispatcher knows how to refuse it
        return False
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    # The batches of torch.autograd.grad(is_grads_batched=True) look like ordinary tensors, but have no memory.
    batched = torch._C._functorch.is_legacy_batchedtensor
    return all(type(a) in (Tensor, nn.Parameter) and not batched(a) for a in tensors)


def _differentiable(
    op: Any, run: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., Any] | None
) -> Any:
    """What torch.library.register_autograd makes, at a fifth of its cost: that reads the schema at each call to fill in
    defaults, 0.3 ms for an op with 19 arguments. Called with a set of dispatch keys, or None for no dispatcher."""
    defaults = tuple(argument.default_value for argument in op._schema.arguments)

    def below(keyset: Any, arguments: Sequence[Any]) -> Any:
        if keyset is None:
            return run(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx: Any, *arguments: Any) -> Any:
        *inputs, keyset = arguments
        output = below(keyset, inputs)
        ctx.inputs = len(inputs)
        ctx.set_materialize_grads(False)
        if setup_context is not None:
            setup_context(ctx, (*inputs, *defaults[len(inputs) :]), output)  # the dispatcher leaves defaults out
        return output

    def differentiate(ctx: Any, *gradients: Any) -> Any:
        if all(g is None for g in gradients):
            return (None,) * (ctx.inputs + 1)
        made = backward(ctx, *gradients)
        return (*made[: ctx.inputs], *[None] * (ctx.inputs - len(made)), None)

    names = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    function: Any = type(f"Backward of {op}", (torch.autograd.Function,), names)

    def dispatch(keyset: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return function.apply(*arguments, keyset)
        return below(keyset, arguments)

    return dispatch
