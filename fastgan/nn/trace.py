"""The graph of a module's forward, by torch.fx, and what it relies on.

torch.fx runs the forward with stand-ins for tensors. What it would get wrong without a word is refused here: tensors
that do not come from the inputs (noise would be frozen), changed gradient or autocast modes, attributes that the
forward sets, side effects, questions about the type of an input. A submodule whose forward cannot be traced is called
as it is.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fastgan.nn.chain import is_layer
from fastgan.nn.guards import MISSING, SCALARS, Guards, class_of, has_hooks, snapshot
from fastgan.nn.modules import OURS

INTERNAL = set(nn.Module().__dict__) - {"training"} | {"_compiled_call_impl", "forward"}
LEAVES = 64  # submodules that cannot be traced, before the whole module is given up

Form = tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]
"""Positional and keyword arguments of a call: Tensor for a tensor, else the constant itself."""


class Untraceable(Exception):
    """Why a forward has no graph. `module`: the innermost one whose forward it is, which is not a leaf."""

    def __init__(self, reason: str, module: nn.Module | None = None) -> None:
        super().__init__(reason)
        self.module = module


@dataclass
class Trace:
    """graph: None where there is none, then reason says why. leaves: (path, module, reason) of submodules called as
    they are although they are no layers of PyTorch. inlined: those whose forward was followed."""

    graph: fx.Graph | None
    guards: Guards
    reason: str = ""
    leaves: list[tuple[str, nn.Module, str]] = field(default_factory=list)
    inlined: list[nn.Module] = field(default_factory=list)


def form_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Form | None:
    """None for a call that is not traced, with lists of tensors for example."""
    values = (*args, *kwargs.values())
    if not all(isinstance(value, (Tensor, *SCALARS)) for value in values):
        return None
    positional = tuple(Tensor if isinstance(value, Tensor) else value for value in args)
    return positional, tuple((k, Tensor if isinstance(v, Tensor) else v) for k, v in kwargs.items())


def same_form(one: Form, other: Form) -> bool:
    """Equal, with constants of the same types: 1, 1.0 and True are equal, but not the same to every forward."""
    if one != other:
        return False
    pairs = [*zip(one[0], other[0], strict=True), *((a[1], b[1]) for a, b in zip(one[1], other[1], strict=True))]
    return all(type(a) is type(b) for a, b in pairs)


LIBRARIES = sys.stdlib_module_names - {"__main__"} | {"torch", "fastgan"}  # whose own calls and constants do not count
_ONE_AT_A_TIME = threading.RLock()  # torch.fx and the records replace methods of nn.Module meanwhile


def trace(root: nn.Module, form: Form) -> Trace:
    """The graph of root.forward for such a call. Its placeholders are the tensors in the order of the call."""
    with _ONE_AT_A_TIME:
        return _trace(root, form)


def _trace(root: nn.Module, form: Form) -> Trace:
    refused: dict[nn.Module, str] = {}
    while True:
        guards = Guards()
        tracer = _Tracer(refused, form)
        try:
            graph = tracer.graph_of(root, guards)
            reason = ""
        except Untraceable as error:
            if error.module is not None and error.module is not root and len(refused) < LEAVES:
                refused[error.module] = str(error)
                continue
            graph, reason = None, str(error)
        guards.add_structure([root, *tracer.inlined, *_containers(root)])
        guards.hookless += tracer.inlined
        paths = {m: name for name, m in root.named_modules()}
        leaves = [(paths[m], m, why) for m, why in tracer.leaves.items() if m in paths]
        return Trace(graph, guards, reason, leaves, tracer.inlined)


def _containers(root: nn.Module) -> list[nn.Module]:
    return [m for m in root.modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))]


class _Proxy(fx.Proxy):
    """A stand-in that refuses to be asked for its type by the forward: it would give the wrong answer."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if _Watch.asked is not None:
            raise Untraceable("its forward asks for the type of a value")
        return _Proxy


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True
    running = 0

    def __init__(self, refused: dict[nn.Module, str], form: Form) -> None:
        super().__init__()
        self.refused, self.form = refused, form
        self.inlined: list[nn.Module] = []
        self.leaves: dict[nn.Module, str] = {}
        self._calls: list[nn.Module] = []
        self._modes = _modes()

    def graph_of(self, root: nn.Module, guards: Guards) -> fx.Graph:
        """The graph of the forward of `root`. Raises Untraceable."""
        with _recorded(root, guards):
            _Tracer.running += 1
            try:
                return self.trace(root)
            except Untraceable as error:
                raise Untraceable(str(error), self._innermost()) from error
            except Exception as error:  # whatever a forward does when it meets a stand-in
                raise Untraceable(_first_line(error), self._innermost()) from error
            finally:
                _Tracer.running -= 1

    def _innermost(self) -> nn.Module | None:
        return next((m for m in reversed(self._calls) if m not in self.leaves), None)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        original = class_of(self.root).forward  # type: ignore[attr-defined]
        positional, keywords = self.form
        args = [self._stand_in(f"arg_{i}", value) for i, value in enumerate(positional)]
        kwargs = {name: self._stand_in(name, value) for name, value in keywords}
        return (lambda root: original(root, *args, **kwargs)), [self.root]

    def _stand_in(self, name: str, value: Any) -> Any:
        return self.create_proxy("placeholder", name, (), {}) if value is Tensor else value

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, OURS) or is_layer(m) or super().is_leaf_module(m, module_qualified_name):
            return True
        if why := self.refused.get(m) or _opaque(m):
            self.leaves[m] = why
            return True
        return False

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._calls.append(m)
        out = super().call_module(m, forward, args, kwargs)
        self._calls.pop()
        if m not in self.leaves and not self.is_leaf_module(m, ""):
            self.inlined.append(m)
        return out

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise Untraceable("its forward changes the gradient or autocast mode")
        return super().create_node(kind, target, *args, **kwargs)


def is_tracing() -> bool:
    """Whether a forward is being followed just now, of this module or of one that it is in."""
    return _Tracer.running > 0


def _opaque(module: nn.Module) -> str:
    """Why the call of this module has to be made as it is; "" where its forward may be followed."""
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module"
    if "forward" in module.__dict__:
        return "its forward was replaced on the object"
    if has_hooks(module):
        return "it has hooks"
    return ""


def _modes() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _first_line(error: BaseException) -> str:
    if isinstance(error, fx.proxy.TraceError) and "control flow" in str(error):
        return "its forward branches on its input"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---- what happens besides, while the forward runs with stand-ins


class _NoTensors(TorchFunctionMode):
    """Refuses tensors that are computed for real: in the graph they would be constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            raise Untraceable(f"its forward makes a tensor without its inputs ({getattr(func, '__name__', func)})")
        return out


class _Watch:
    """Notes constants in the globals of the functions that run, and refuses side effects, randomness and checkpoints,
    of which nothing would remain in the graph. For sys.setprofile."""

    asked: types.FrameType | None = None  # a function of the forward's that is in isinstance

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.codes: set[types.CodeType] = set()
        self.alive = 0

    def check(self) -> None:
        """Raises Untraceable where calls are not seen: someone has taken the profiling away, or Python has."""
        before = self.alive
        _Watch.asked = None
        _canary(0)
        if self.alive != before + 2:
            raise Untraceable("Python's profiling does not work here, without which a trace is not safe")

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> None:
        space, code = frame.f_globals, frame.f_code
        if code is _canary.__code__:
            self.alive += event == "call" or (event == "c_call" and arg is isinstance)
            return
        inside = str(space.get("__name__", "")).partition(".")[0] in LIBRARIES
        if arg is isinstance and event == "c_call" and (not inside or code.co_name == "is_tensor"):
            _Watch.asked = frame
        elif arg is isinstance and frame is _Watch.asked:
            _Watch.asked = None
        if event == "call" and inside and code.co_name == "checkpoint":
            raise Untraceable("its forward uses a checkpoint")
        if event == "call" and space.get("__name__") == "random":
            raise Untraceable(f"its forward calls random.{code.co_name}")
        if event == "call" and not inside and code not in self.codes:
            self.codes.add(code)
            constants = [name for name in code.co_names if isinstance(space.get(name), SCALARS) and name in space]
            self.guards.names += [(space, name, space[name]) for name in constants]
        elif event == "c_call" and not inside and _has_side_effects(arg):
            raise Untraceable(f"its forward calls {arg.__name__}")


def _canary(value: Any) -> bool:
    """Makes the two kinds of calls that a watch has to see."""
    return isinstance(value, int)


def _has_side_effects(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    chance = isinstance(owner, random.Random) or type(owner).__module__.startswith("numpy.random")
    return chance or function in (print, input, open) or getattr(function, "__module__", None) == "time"


@contextlib.contextmanager
def _recorded(root: nn.Module, guards: Guards) -> Iterator[None]:
    """Records the attributes and global constants that are read; refuses attributes that are set and side effects."""
    notes = _Notes(root)
    plain_set, before = nn.Module.__setattr__, sys.getprofile()
    # What the garbage collector calls is no part of the forward, and an exception there would end the profiling.
    collecting = gc.isenabled()
    gc.disable()

    def refuse(module: nn.Module, name: str, value: Any) -> None:
        if module in notes.modules:
            raise Untraceable(f"its forward sets the attribute {name!r}")
        plain_set(module, name, value)

    nn.Module.__getattribute__ = notes.get  # type: ignore[method-assign,assignment]
    nn.Module.__setattr__ = refuse  # type: ignore[method-assign,assignment]
    try:
        with _NoTensors():
            watch = _Watch(guards)
            sys.setprofile(watch)
            try:
                watch.check()
                yield
                watch.check()
            finally:
                sys.setprofile(before)
                _Watch.asked = None
    finally:
        del nn.Module.__getattribute__
        nn.Module.__setattr__ = plain_set  # type: ignore[method-assign]
        if collecting:
            gc.enable()
        changed = notes.restore()
        notes.become(guards)
    if changed:
        raise Untraceable(f"its forward changes what is in the attribute {changed!r}")


class _Notes:
    """Attributes that were read of the modules below a root: Python's own, not parameters, buffers or submodules, which
    the graph reads itself."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = set(root.modules())
        self.values: dict[tuple[nn.Module, str], tuple[Any, Any]] = {}
        self.copies: list[tuple[Any, Any]] = []

    @property
    def get(self) -> Callable[[nn.Module, str], Any]:
        def get(module: nn.Module, name: str) -> Any:
            try:
                value = object.__getattribute__(module, name)
            except AttributeError:
                self.note(module, name, MISSING)
                raise
            self.note(module, name, value)
            return value

        return get

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        if name in INTERNAL or name.startswith("__") or module not in self.modules or (module, name) in self.values:
            return
        if value is MISSING:
            own = object.__getattribute__(module, "__dict__")
            held = [own[kind][name] for kind in ("_parameters", "_buffers", "_modules") if name in own.get(kind, ())]
            if held and held[0] is not None:
                return
            value = held[0] if held else MISSING
        elif isinstance(value, (types.MethodType, Tensor)) or isinstance(getattr(type(module), name, None), property):
            return
        if type(value) in (list, dict):
            self.copies.append((value, value.copy()))
        self.values[module, name] = value, snapshot(value)

    def restore(self) -> str:
        """Undoes what was put into lists; the name of an attribute that changed, or ""."""
        changed = next((name for (_, name), (value, before) in self.values.items() if snapshot(value) != before), "")
        for value, copy in self.copies:
            if changed and isinstance(value, list):
                value[:] = copy
            elif changed:
                value.clear()
                value.update(copy)
        return changed

    def become(self, guards: Guards) -> None:
        for (module, name), (value, _) in self.values.items():
            guards.add_attribute(module, name, value)
