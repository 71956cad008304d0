"""The front door: a critic's call as a graph, under guards, by the tracer of torch.compile, Dynamo, with our backend.

Dynamo decides when a captured graph still holds (shapes, dtypes, train or eval, `requires_grad`, Python attributes and
globals that the critic read) and carries out the call's side effects on Python objects. What is done with the graph is
up to the `Request` of the call.
"""

from __future__ import annotations

import contextlib
import contextvars
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import _disable_current_modes

from fastgan.errors import UnsupportedCritic
from fastgan.kernels._runtime import plain_layers

LONGEST_REST = 1024
CAPTURES = 64
"""Captures of one critic after which it is given up: something that it reads changes at every call."""


class Request(Protocol):
    """What a caller wants done with the graph of a call."""

    def run(self, program: Program, args: Sequence[Any]) -> Sequence[Any]:
        """Outputs of the critic's call (logits first) for its arguments: parameters, buffers and inputs."""
        ...


@dataclass(eq=False)
class Program:
    """One captured graph of a critic's call; `memory` is for what requests derive from it."""

    graph: fx.GraphModule
    memory: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Sequence[Any]:
        return _REQUEST.get().run(self, args)


_REQUEST: contextvars.ContextVar[Request] = contextvars.ContextVar("request")
_MODES: contextvars.ContextVar[Sequence[Any]] = contextvars.ContextVar("modes", default=())


@contextlib.contextmanager
def _without_modes() -> Iterator[Sequence[Any]]:
    """No torch dispatch mode (profilers, counters), under which Dynamo does not work; yields them, innermost first."""
    if not torch._C._len_torch_dispatch_stack():
        yield ()
        return
    with _disable_current_modes() as modes:
        yield modes


@contextlib.contextmanager
def callers_modes() -> Iterator[None]:
    """The dispatch modes of the caller again, around what is computed on its behalf."""
    with contextlib.ExitStack() as stack:
        for mode in reversed(_MODES.get()):
            stack.enter_context(mode)
        yield


class Capture:
    """The captured calls of one critic."""

    def __init__(self) -> None:
        self.captures = 0
        self.failures = 0
        self.apart: set[bool] = set()  # modes (training or not) in which real and fake are two batches
        self._rest = 0  # calls for which no capture is tried
        self._reason = ""
        self._call: Callable[..., Any] | None = None
        # Made once: each new one would stay in the thread's context for good, one more in every step.
        self._guarding_hooks: contextlib.AbstractContextManager[Any] | None = None

    def call(self, request: Request, critic: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """critic(*inputs), by way of `request`. UnsupportedCritic if it cannot be captured."""
        import torch._dynamo as dynamo

        # Left behind by another compiled function of dynamic floats, it makes Dynamo drop in-place operations here.
        dynamo.symbolic_convert.TensorifyState.clear()
        if dynamo.config.disable or torch.compiler.is_compiling():
            raise UnsupportedCritic("capturing is off (TORCHDYNAMO_DISABLE, or an outer torch.compile)")
        if self._call is None:
            self._call = self._fresh_call()
        if self._guarding_hooks is None:
            self._guarding_hooks = dynamo.config.patch(skip_nnmodule_hook_guards=False)
        with torch.enable_grad(), _without_modes() as modes:
            tokens = _REQUEST.set(request), _MODES.set(modes)
            try:
                with self._guarding_hooks, plain_layers():
                    return self._attempt(dynamo, critic, inputs)
            finally:
                _REQUEST.reset(tokens[0])
                _MODES.reset(tokens[1])

    @contextlib.contextmanager
    def patience(self, *, insist: bool) -> Iterator[None]:
        """UnsupportedCritic for a critic that has been captured too often.

        Unless `insist`, also for one that failed lately, with the same reason: a failing capture costs more than the
        step, so that the n-th failure is followed by 2^n calls without another attempt.
        """
        # Another attempt would break the capture of a CUDA graph, in which nothing may be asked of the device.
        graph = bool(self.failures) and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if (self._rest or graph) and not insist:
            self._rest = max(0, self._rest - 1)
            raise UnsupportedCritic(self._reason)
        self._refuse_restless()
        try:
            yield
        except UnsupportedCritic as error:
            self.failures += 1
            self._rest, self._reason = min(2**self.failures, LONGEST_REST), str(error)
            raise
        self.failures = 0

    def _refuse_restless(self) -> None:
        if self.captures >= CAPTURES:
            raise UnsupportedCritic(
                f"captured {CAPTURES} times: something that its forward reads changes from call to call"
            )

    def _attempt(self, dynamo: Any, critic: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        assert self._call is not None
        try:
            return self._call(critic, *inputs)
        except dynamo.exc.FailOnRecompileLimitHit:  # its limit is per code object: start a new one
            self._call = self._fresh_call()
            return self._attempt(dynamo, critic, inputs)
        except (dynamo.exc.TorchDynamoException, dynamo.exc.RecompileError) as error:
            raise UnsupportedCritic(f'cannot be captured: {_first_line(error)}; use method="autograd"') from error

    def _backend(self, graph: fx.GraphModule, _: Sequence[Any]) -> Program:
        self.captures += 1
        return Program(graph)

    def _fresh_call(self) -> Callable[..., Any]:
        """The compiled caller, with a code object of its own: Dynamo keeps its captures there."""

        def call(critic: Callable[..., Any], *inputs: Tensor) -> Any:
            return critic(*inputs)

        own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
        return torch.compile(own, backend=self._backend, fullgraph=True, dynamic=False)


_CAPTURES: weakref.WeakKeyDictionary[Any, Capture] = weakref.WeakKeyDictionary()


def capture_of(critic: Callable[..., Any]) -> Capture:
    """The captures of this critic; functions share them by their code, since lambdas are made anew at each call."""
    key = _key(critic)
    if key is None:
        raise UnsupportedCritic(f"a critic of type {type(critic).__name__} is neither an nn.Module nor a function")
    if key not in _CAPTURES:
        _CAPTURES[key] = Capture()
    return _CAPTURES[key]


def _key(critic: Callable[..., Any]) -> Any:
    """The module itself, or a function's code; None for other callables."""
    return critic if isinstance(critic, nn.Module) else getattr(getattr(critic, "__func__", critic), "__code__", None)


ENOUGH = 8
"""Captures of one critic after which none is tried for the sake of one batch alone."""


def may_join(critic: Callable[..., Any], device: torch.device) -> bool:
    """Whether to find out, or already known to be worth it, if `critic` can see real and fake as one batch.

    False is always right, only slower. It is also the answer for networks that their owner has compiled.
    """
    if device.type == "meta" or torch.compiler.is_compiling():
        return False
    known = _CAPTURES.get(_key(critic)) if _key(critic) is not None else None
    if known is None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    if known is not None and (_mode(critic) in known.apart or known.captures >= ENOUGH):
        return False
    return not (isinstance(critic, nn.Module) and any(map(_couples_or_is_compiled, critic.modules())))


def remember_apart(critic: Callable[..., Any], capture: Capture) -> None:
    capture.apart.add(_mode(critic))


def _mode(critic: Callable[..., Any]) -> bool:
    return isinstance(critic, nn.Module) and critic.training


def _couples_or_is_compiled(module: nn.Module) -> bool:
    """By its type alone: spares a capture, and with it a second and the memory that Dynamo takes."""
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    return norm or type(module).__name__ == "OptimizedModule"


def refuse_hooks(critic: Callable[..., Any]) -> None:
    """UnsupportedCritic for modules whose hooks or wrappers need autograd to run, or that need other processes."""
    if not isinstance(critic, nn.Module):
        return
    for name, module in critic.named_modules():
        place = f"critic.{name}" if name else "critic"
        if module._backward_hooks or module._backward_pre_hooks:
            raise UnsupportedCritic(f'backward hook at {place}: only autograd runs it; use method="autograd"')
        if isinstance(module, _BatchNorm) and module.training and getattr(module, "process_group", None) is not None:
            raise UnsupportedCritic(
                f'batch normalisation over several processes at {place}: only autograd runs it; use method="autograd"'
            )
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise UnsupportedCritic(
                f'{type(module).__name__} at {place}: its gradients are reduced by autograd; use method="autograd"'
            )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


_WARNED: weakref.WeakSet[Any] = weakref.WeakSet()


def say_once(critic: Callable[..., Any], reason: str) -> None:
    """Warn that `critic` is differentiated by autograd, once per critic."""
    key = _key(critic)
    if key is None or key in _WARNED:
        return
    _WARNED.add(key)
    shown = reason.removesuffix('; use method="autograd"')
    warnings.warn(
        f'critic_backward: method="auto" differentiates {type(critic).__name__} by autograd, which is slower: {shown}',
        RuntimeWarning,
        stacklevel=4,
    )
