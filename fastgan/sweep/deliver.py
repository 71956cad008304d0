"""Gradients that are known already, added to `.grad` as backward() would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def accumulate(grads: dict[Tensor, Tensor]) -> None:
    """Add the gradients to `.grad` by autograd's own hands: layouts, sums and hooks as ever. It empties `grads`."""
    parameters, values = list(grads), list(grads.values())
    grads.clear()  # autograd copies what someone else holds
    with torch.enable_grad():
        _Deliver.apply(values, *parameters).backward()  # type: ignore[no-untyped-call]


class _Deliver(torch.autograd.Function):
    """A scalar whose gradients by the parameters are the given values."""

    @staticmethod
    def forward(ctx: Any, values: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.values = values
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        values = tuple(ctx.values)
        ctx.values.clear()
        return (None, *values)
