"""What a forward relied on when it was traced, and whether all of it still holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastgan.nn.chain import is_layer

SCALARS = (type(None), bool, int, float, str)
DEPTH = 3
MISSING = "<no such attribute>"


def class_of(module: nn.Module) -> type:
    """The class of the module, before fuse() where that has been there."""
    cls: type = getattr(type(module), "_fastgan_original", type(module))
    return cls


def has_hooks(module: Any) -> bool:
    """Hooks that see what goes in or out, or run when gradients pass."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def snapshot(value: Any, depth: int = DEPTH) -> Any:
    """Something that is equal for a value that has not changed, and keeps alive what is compared by identity."""
    if isinstance(value, SCALARS):
        return type(value), value
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return type(value), [snapshot(v, depth - 1) for v in value]
    if depth and isinstance(value, dict):
        return type(value), [(snapshot(k, 1), snapshot(v, depth - 1)) for k, v in value.items()]
    if depth and not isinstance(value, (torch.Tensor, nn.Module, type)) and hasattr(value, "__dict__"):
        return _Same(value), [(k, snapshot(v, depth - 1)) for k, v in vars(value).items()]
    return _Same(value)


class _Same:
    """Equal to another of the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass
class Guards:
    """What a trace read.

    attributes: (module, name, value) of plain numbers, texts and the like;  objects: of anything else, as a snapshot
    children:   (module, its class, its children by name)
    hookless:   modules whose calls are not made any more, so that their hooks would not run
    layers:     modules that have to remain what a chain can compute
    names:      (globals of a Python module, name, value), of constants
    """

    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    objects: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    children: list[tuple[nn.Module, type, dict[str, nn.Module | None]]] = field(default_factory=list)
    hookless: list[nn.Module] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)
    names: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)

    def add_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, SCALARS):
            self.attributes.append((module, name, value))
        else:
            self.objects.append((module, name, snapshot(value)))

    def add_structure(self, modules: Iterable[nn.Module]) -> None:
        self.children += [(m, class_of(m), dict(m._modules)) for m in modules]

    def hold(self) -> bool:
        """Also followed by torch.compile, which then guards what is read here."""
        for module, name, value in self.attributes:
            now = getattr(module, name, MISSING)
            if type(now) is not type(value) or now != value:
                return False
        for module in self.hookless:
            if has_hooks(module) or "forward" in module.__dict__:
                return False
        for module in self.layers:
            if not is_layer(module):
                return False
        if torch.compiler.is_compiling():
            return bool(_as_constant(self))
        return self.same_objects()

    def same_objects(self) -> bool:
        for module, cls, children in self.children:
            if class_of(module) is not cls or module._modules != children:
                return False
        if any(space.get(name, MISSING) != value for space, name, value in self.names):
            return False
        return all(snapshot(getattr(module, name, MISSING)) == value for module, name, value in self.objects)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _as_constant(guards: Guards) -> bool:
    """torch.compile itself guards the modules that it goes through; the rest is looked at when it compiles."""
    return guards.same_objects()
