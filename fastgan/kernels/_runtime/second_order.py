"""Derivatives of an op's backward: those of its reference, so that no kernel has to know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def double_backward(
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    grad: Tensor,
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of sum_i <cotangents[i], g_i> by `grad` and by each input, where g = J(inputs)ᵀ grad.

    reference: differentiable to any order, takes `inputs`, of which some may be None
    cotangents: one per input, None where nothing comes
    Returns [by grad, by inputs[0], ...], None where there is none. Differentiable once more where autograd records.
    """
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, not detached copies: what is computed here has to reach the graph of the inputs themselves.
        upstream = _alias(grad)
        aliases = [x if x is None else _alias(x) for x in inputs]
        wanted = [i for i, c in enumerate(cotangents) if c is not None and aliases[i] is not None]
        first = torch.autograd.grad(
            reference(*aliases),
            [x for i, x in enumerate(aliases) if x is not None and i in wanted],
            upstream,
            create_graph=True,
            allow_unused=True,
        )
        pairs = [(g, cotangents[i]) for i, g in zip(wanted, first, strict=True) if g is not None and g.requires_grad]
        sources = [upstream, *(x for x in aliases if x is not None)]
        if not pairs:
            return [None] * (1 + len(inputs))
        outputs, weights = [g for g, _ in pairs], [c.to(g.dtype) for g, c in pairs if c is not None]
        second = iter(torch.autograd.grad(outputs, sources, weights, create_graph=record, allow_unused=True))
        return [next(second), *(None if x is None else next(second) for x in aliases)]


def _alias(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
