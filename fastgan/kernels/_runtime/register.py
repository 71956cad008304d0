"""Registration of ops with torch, so that torch.compile, fake tensors, autograd and the dispatcher know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
        torch.library.register_autograd(f"fastgan::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    if decomposition:
        packet = getattr(torch.ops.fastgan, name)
        DECOMPOSITIONS[packet] = DECOMPOSITIONS[packet.default] = decomposition
