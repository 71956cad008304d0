"""The three products on a GPU: the library's path or our Triton kernels, whichever measures faster for a shape.

Each function gives the candidates, name -> call, of which the first is the library's; `best` takes the one to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels._runtime import choose, disable
from fastgan.kernels._runtime.measure import decide
from fastgan.kernels.batch_norm_act import Norm
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry

OP = "conv_transpose_bn_act"
HALF = (torch.bfloat16, torch.float16)
TYPES = (torch.float32, *HALF)

Candidates = Mapping[str, Callable[[], Any]]


def can(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether there are kernels of ours for this, that have proved themselves on the device of x."""
    if not x.is_cuda or x.dtype not in TYPES or x.numel() == 0 or not choose(OP, x.device).native:
        return False
    return _phases(weight, geometry) is not None


def best(what: str, x: Tensor, weight: Tensor, geometry: Geometry, options: str, candidates: Candidates) -> Any:
    """The result of the fastest of `candidates` whose numbers are right."""
    key = f"{what} {tuple(x.shape)} by {tuple(weight.shape)}, {geometry}, {x.dtype}, {options}"
    runs = {name: _only_tensors(run) for name, run in candidates.items()}
    name = decide(OP, key, runs, x.device)
    library = next(iter(candidates))
    if name == library:
        return candidates[library]()
    try:
        return candidates[name]()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many kinds: the compiler's, the driver's
        disable(OP, x.device, error)
        return candidates[library]()


def forward(
    library: Callable[[], Any],
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act_out: int,
    slope_out: float,
    want_stats: bool,
) -> Candidates:
    """y, mean, var."""
    from fastgan.kernels.conv_transpose_bn_act import triton  # only here: it takes long to load, and is not everywhere

    phases = _phases(weight, geometry)

    def ours(how: Any) -> Callable[[], Any]:
        return lambda: triton.forward(
            x,
            weight,
            bias,
            phases,
            _prologue(triton, norm),
            act=act_out,
            slope=slope_out,
            want_stats=want_stats,
            how=how,
        )

    return {"library": library, **{name: ours(how) for name, how in _ways(triton, x).items()}}


def input_gradient(library: Callable[[], Tensor], grad: Tensor, weight: Tensor, geometry: Geometry) -> Candidates:
    """da, that of what goes into the convolution. grad: of y."""
    from fastgan.kernels.conv_transpose_bn_act import triton

    phases = _phases(weight, geometry)

    def ours(how: Any) -> Callable[[], Tensor]:
        return lambda: triton.input_gradient(grad, weight, phases, how=how)

    return {"library": library, **{name: ours(how) for name, how in _ways(triton, grad).items()}}


def weight_gradient(
    library: Callable[[], Tensor], grad: Tensor, x: Tensor, norm: Norm, weight: Tensor, geometry: Geometry
) -> Candidates:
    """dweight, from x before the normalisation, which is not made again in memory by ours."""
    from fastgan.kernels.conv_transpose_bn_act import triton

    phases = _phases(weight, geometry)

    def ours(how: Any) -> Callable[[], Tensor]:
        return lambda: triton.weight_gradient(x, grad, phases, _prologue(triton, norm), dtype=weight.dtype, how=how)

    return {"library": library, **{name: ours(how) for name, how in _ways(triton, x).items()}}


def _phases(weight: Tensor, geometry: Geometry) -> Any:
    from fastgan.kernels.conv_transpose_bn_act.phases import phases_of

    g = geometry
    return phases_of(weight.shape[2:], g.stride, g.padding, g.output_padding, g.dilation, g.groups)


def _prologue(triton: Any, norm: Norm) -> Any:
    n = norm
    return triton.prologue_of(n.mean, n.var, n.weight, n.bias, n.eps, n.act, n.slope)


def _ways(triton: Any, x: Tensor) -> dict[str, Any]:
    how = triton.default_how(x)
    ways = {"Triton, pointers": triton.How(how.capability, descriptors=False)}
    if how.descriptors:
        ways["Triton, descriptors"] = how
    return ways


def _only_tensors(run: Callable[[], Any]) -> Callable[[], Any]:
    """What is compared: float results, without those that are None."""

    def tensors() -> Any:
        made = run()
        return made if isinstance(made, Tensor) else tuple(t for t in made if t is not None)

    return tensors
