"""fuse(model): runs of layers as one, in any model, without a change to its state, its classes or its behaviour."""

from __future__ import annotations

import copyreg
import functools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from fastgan.errors import FastganError
from fastgan.nn.guards import Guards, class_of
from fastgan.nn.runs import Chain, Left, find_chains, rewrite
from fastgan.nn.trace import Form, Trace, form_of, is_tracing, same_form, trace

PLANS = 8  # traces of one module: more than its modes; whatever changes oftener runs as it was written
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Record:
    """One run of layers, or one layer that was left alone.

    where: names of the modules, or of functions where there is none;  fused: whether they are one now;
    what: what they became, or why not
    """

    where: tuple[str, ...]
    fused: bool
    what: str

    def __str__(self) -> str:
        return f"{' + '.join(self.where)}: {self.what if self.fused else f'left alone: {self.what}'}"


@dataclass
class Plan:
    """A forward for calls of one form, as long as its guards hold; `run` None: the original one."""

    form: Form
    guards: Guards
    run: Callable[..., Any] | None


def fuse(model: _Module) -> _Module:
    """The same model, in which runs of [activation ->] transposed convolution [-> batch normalisation] [-> activation]
    and batch normalisation -> activation are computed as one.

    Parameters, buffers, names, hooks, state_dict and the classes' names stay. What was fused, fused(model) says; a
    submodule that is called on its own (model.decoder(z)) is fused then as well.
    Raises FastganError for what is no module.
    """
    for module, analysis in _survey(_checked("fuse", model)):
        if analysis.chains and analysis.traced is not None:
            inner = _around_runs(module, analysis.chains)
            if _become_fused(module):
                module.__dict__["_fastgan_plans"] = (
                    _plan_of(module, _usual_form(module), analysis.traced, analysis.chains),
                )
            for submodule in inner:  # traced when it is called, if ever
                _become_fused(submodule)
    return model


def _become_fused(module: nn.Module) -> bool:
    """False where it was already."""
    if hasattr(type(module), "_fastgan_original"):
        return False
    made: Any = _made_class
    module.__class__ = made(type(module))
    return True


def _around_runs(root: nn.Module, chains: list[Chain]) -> list[nn.Module]:
    """The submodules of root, not its layers, that hold a layer of a chain."""
    layers = [name for chain in chains for step in chain.steps for name in step.names]
    return [
        module
        for path, module in root.named_modules()
        if path and any(name.startswith(f"{path}.") for name in layers) and _may_be_root(module)
    ]


def fused(model: nn.Module) -> list[Record]:
    """What fuse(model) made of each run of layers, and what was left alone and why."""
    records: list[Record] = []
    for module, analysis in _survey(_checked("fused", model)):
        done = hasattr(type(module), "_fastgan_original")
        records += [_of_chain(analysis.path, chain, done) for chain in analysis.chains]
        records += [Record((_join(analysis.path, left.where),), False, left.reason) for left in analysis.left]
    return records


def _checked(name: str, model: Any) -> Any:
    if not isinstance(model, nn.Module):
        raise FastganError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def _of_chain(path: str, chain: Chain, done: bool) -> Record:
    where = tuple(_join(path, name) for step in chain.steps for name in step.names)
    convolutions = sum(bool(step.conv) for step in chain.steps)
    what = {0: "one pass", 1: "one block"}.get(convolutions, f"one chain of {convolutions} blocks")
    return Record(where, done, what if done else "fuse() was not called on this model")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# ---- which modules


@dataclass
class Analysis:
    """Of one module, at `path` in the model."""

    path: str
    chains: list[Chain]
    left: list[Left]
    traced: Trace | None = None


def _survey(model: nn.Module) -> list[tuple[nn.Module, Analysis]]:
    """The largest modules that can be traced, and what is in them."""
    found: list[tuple[nn.Module, Analysis]] = []
    _visit(model, "", set(), found)
    return found


def _visit(module: nn.Module, path: str, seen: set[nn.Module], found: list[tuple[nn.Module, Analysis]]) -> None:
    if module in seen:
        return
    seen.add(module)
    if not _may_be_root(module):
        _visit_children(module, path, seen, found)
        return
    traced = trace(module, _usual_form(module))
    if traced.graph is None:
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            found.append((module, Analysis(path, [], [Left(type(module).__name__, f"{traced.reason}; looked inside")])))
        _visit_children(module, path, seen, found)
        return
    chains, left = find_chains(module, traced.graph, traced.guards)
    left += [Left(f"{name} ({type(leaf).__name__})", f"{why}; looked inside") for name, leaf, why in traced.leaves]
    found.append((module, Analysis(path, chains, left, traced)))
    called = {name: module.get_submodule(name) for name in _names_of_calls(traced.graph)}
    for name, leaf in called.items():  # called as it is: it may have runs of its own
        if any(True for _ in leaf.children()):
            _visit(leaf, _join(path, name), seen, found)
    _visit_unused(module, path, {*called.values(), *traced.inlined}, seen, found)


def _names_of_calls(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


def _visit_unused(module: nn.Module, path: str, used: set[nn.Module], seen: set[nn.Module], found: Any) -> None:
    """Submodules that a forward neither calls nor goes through, such as an encoder for who calls it."""
    for name, child in module.named_children():
        if child in seen:
            continue
        if any(m in used for m in child.modules()):
            _visit_unused(child, _join(path, name), used, seen, found)
        elif any(True for _ in child.children()):
            _visit(child, _join(path, name), seen, found)


def _visit_children(module: nn.Module, path: str, seen: set[nn.Module], found: Any) -> None:
    for name, child in module.named_children():
        if any(True for _ in child.children()):
            _visit(child, _join(path, name), seen, found)


def _may_be_root(module: nn.Module) -> bool:
    """Not the layers of PyTorch and ours, and not containers that are not called."""
    cls = class_of(module)
    library = cls.__module__.startswith(("torch.", "fastgan.nn.")) and not isinstance(module, nn.Sequential)
    return not library and "forward" not in module.__dict__ and not isinstance(module, torch.jit.ScriptModule)


def _usual_form(module: nn.Module) -> Form:
    """A call with tensors for all arguments that have no default."""
    import inspect

    parameters = list(inspect.signature(class_of(module).forward).parameters.values())[1:]  # type: ignore[attr-defined]
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    positional = tuple(Tensor for p in required if p.kind is not p.KEYWORD_ONLY)
    return positional, tuple((p.name, Tensor) for p in required if p.kind is p.KEYWORD_ONLY)


# ---- the class of a fused module


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    plan = _plan(self, args, kwargs)
    if plan is None or plan.run is None:
        return type(self)._fastgan_original.forward(self, *args, **kwargs)
    return plan.run(self, *[value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])


def _plan(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return None
    if is_tracing():  # the trace is to see what the original forward does
        return None
    form = form_of(args, kwargs)
    if form is None or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    for plan in module._fastgan_plans:
        if same_form(plan.form, form) and plan.guards.hold():
            found: Plan = plan
            return found
    # A replica of DataParallel runs beside others in a thread: tracing would get in their way.
    if torch.compiler.is_compiling() or len(module._fastgan_plans) >= PLANS or getattr(module, "_is_replica", False):
        return None
    made = _make_plan(module, form)
    module.__dict__["_fastgan_plans"] = (*module._fastgan_plans, made)
    return made


def _make_plan(module: nn.Module, form: Form) -> Plan:
    traced = trace(module, form)
    chains = find_chains(module, traced.graph, traced.guards)[0] if traced.graph is not None else []
    return _plan_of(module, form, traced, chains)


def _plan_of(module: nn.Module, form: Form, traced: Trace, chains: list[Chain]) -> Plan:
    if traced.graph is None or not chains:
        return Plan(form, traced.guards, None)
    rewrite(traced.graph, chains)
    return Plan(form, traced.guards, _function(traced.graph, type(module).__name__))


def _function(graph: fx.Graph, name: str) -> Callable[..., Any]:
    """The graph as a Python function of the module and the tensors, of which a traceback shows the lines."""
    code = graph.python_code("self")
    file = f"<fused forward of {name} at {id(graph):#x}>"
    linecache.cache[file] = (len(code.src), None, code.src.splitlines(keepends=True), file)
    space = dict(code.globals)
    exec(compile(code.src, file, "exec"), space)
    function: Callable[..., Any] = space["forward"]
    return function


@functools.cache
def _made_class(cls: Any) -> Any:
    """A subclass that looks like `cls`; an object becomes one, and back, by its __class__."""

    def reduce(self: Any, protocol: Any) -> Any:
        made = super(fused_class, self).__reduce_ex__(max(2, protocol))
        if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__ or made[1][0] is not fused_class:  # type: ignore[attr-defined]
            return made
        state = {k: v for k, v in made[2].items() if k != "_fastgan_plans"} if isinstance(made[2], dict) else made[2]
        return _again, (cls, *made[1][1:]), state, *made[3:]

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    # torch.compile counts recompilations per code object: a model's own forward would not share its limit with others.
    forward.__code__ = forward.__code__.replace()  # type: ignore[attr-defined]
    body = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": reduce,
        "forward": forward,
        "_fastgan_original": cls,
        "_fastgan_plans": (),
    }
    # One with an __init_subclass__ in Python would put this class into its registry, or ask for arguments.
    watched = hasattr(cls.__init_subclass__, "__func__")
    fused_class: Any = type(cls)(cls.__name__, (nn.Module if watched else cls,), body)
    if watched:
        fused_class.__bases__ = (cls,)
    return fused_class


def _again(cls: type, *args: Any) -> Any:
    """An object of the fused class without its state, when it is copied or unpickled."""
    fused_class = _made_class(cls)
    return fused_class.__new__(fused_class, *args)
