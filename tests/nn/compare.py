"""Two models side by side: the original one and the fused one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.nn import fuse


def error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    got, expected = got.detach().double(), expected.detach().double()
    size = float(expected.norm())
    return float((got - expected).norm()) / (size or 1.0)


def assert_close(got: Iterable[Tensor | None], expected: Iterable[Tensor | None], bound: float = 1e-12) -> None:
    """All of them together, so that one that is zero but for rounding is measured by the size of the others."""
    pairs = [(g, e) for g, e in zip(got, expected, strict=True)]
    assert all((g is None) == (e is None) for g, e in pairs)
    tensors = [(g.detach(), e.detach()) for g, e in pairs if g is not None and e is not None]
    assert all(g.shape == e.shape and g.dtype == e.dtype for g, e in tensors)
    size = max((float(e.double().norm()) for _, e in tensors), default=0.0)
    for g, e in tensors:
        difference = float((g.double() - e.double()).norm())
        assert difference <= bound * max(float(e.double().norm()), 1e-3 * size), (tuple(g.shape), difference, size)


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """What `make` makes, as it is and fused, with the same state; a model with old hooks cannot be copied."""
    plain, other = make(), make()
    other.load_state_dict(plain.state_dict())
    return plain, fuse(other)


class Calls(TorchDispatchMode):
    """Which operations of ours run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastgan":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@contextmanager
def fused_calls() -> Iterator[list[str]]:
    with Calls() as calls:
        yield calls.names


def gradients(model: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor | None]:
    out = model(x)
    wanted = [x, *[p for p in model.parameters() if p.requires_grad]]
    return list(torch.autograd.grad(out, wanted, upstream, allow_unused=True))
