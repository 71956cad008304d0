"""Choice by measurement, between the library's path and ours, for one chain of ops, shape and type on one GPU.

Numerics come first: a candidate that is wrong, or raises, is not taken again in this process, and one warning says how
to report it. Of the others the fastest is chosen, and remembered in the cache file by device, driver and versions.
Nothing is measured on a CPU, where runs are to be the same bit by bit, nor while a CUDA graph is captured.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastgan.dist import Ranks, current
from fastgan.kernels._runtime import cache
from fastgan.kernels._runtime.choice import first_line

Run = Callable[[], Tensor | Sequence[Tensor]]

# ||ours - exact|| / ||exact||, where exact is computed in float64
BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-5}
# The same with the library's result in place of the exact one. Both have errors, in half types of rounding alone.
BOUNDS_TO_LIBRARY = {torch.float64: 2e-11, torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
ROUNDS = 9  # in which each candidate is timed once
AHEAD = 20_000_000  # cycles, about 10 ms, that the host is ahead of the device

_decided: dict[str, str] = {}
_wrong: dict[tuple[str, str, torch.device], str] = {}


class Unfit(Exception):
    """Why a candidate is not to be used, in one line."""


def decide(op: str, key: str, candidates: Mapping[str, Run], device: torch.device, *, exact: Run | None = None) -> str:
    """The name of the candidate to use from now on.

    op, key: what is computed, and what it depends on: shapes, layout, type, options
    candidates: name -> a call that computes it from the same inputs into new tensors; the first one is the library's
    exact: the same in float64, which the others are compared with; without it the library's is what is right
    Where several ranks play a turn together (fastgan.dist.playing), rank 0 decides for all, and every rank has to come
    here with the same key.
    """
    library, *ours = candidates
    ours = [name for name in ours if (op, name, device) not in _wrong]
    mode = os.environ.get("FASTGAN_KERNELS", "auto")
    if device.type != "cuda" or mode == "library":
        return library
    full = f"{op}: {key}; {cache.machine(device)}; {mode}: {', '.join(candidates)}"
    if full in _decided:
        name = _decided[full]
        return name if (op, name, device) not in _wrong else library
    if torch.cuda.is_current_stream_capturing():
        name = cache.read("choices").get(full, library)  # nothing can be measured now: perhaps it was before
        return name if name in (library, *ours) else library
    ranks = current()
    if ranks.world == 1:
        name = _decide_here(op, full, candidates, library, ours, device, exact)
    else:
        said: list[str] = []
        if ranks.first:
            said = [full.partition(";")[0], _decide_here(op, full, candidates, library, ours, device, exact)]
        name = _from_rank_0(ranks, said, full.partition(";")[0])
    _decided[full] = name
    return name


def _from_rank_0(ranks: Ranks, said: list[str], asked: str) -> str:
    about, name = ranks.from_first(said)
    if about != asked:
        raise RuntimeError(f"ranks decide about different things: rank 0 about {about}, this one about {asked}")
    return str(name)


def _decide_here(
    op: str,
    full: str,
    candidates: Mapping[str, Run],
    library: str,
    ours: list[str],
    device: torch.device,
    exact: Run | None,
) -> str:
    known = cache.read("choices").get(full)
    if known == library or known in ours:
        return known
    try:
        with torch.no_grad(), torch.cuda.device(device):
            fit = _fit(op, candidates, library, ours, device, exact)
            if not fit:
                return library
            if os.environ.get("FASTGAN_KERNELS") == "all":
                return fit[-1]
            times = _time([candidates[name] for name in (library, *fit)])
    except torch.OutOfMemoryError:  # perhaps there is room another time
        return library
    name = min(zip(times, (library, *fit), strict=True), key=lambda pair: pair[0])[1]
    cache.remember("choices", {full: name})
    return name


def _fit(
    op: str, candidates: Mapping[str, Run], library: str, ours: list[str], device: torch.device, exact: Run | None
) -> list[str]:
    """Those of `ours` whose results are right."""
    theirs = _tensors(candidates[library]())
    truth = theirs if exact is None else _tensors(exact())
    fit = []
    for name in ours:
        try:
            compare(_tensors(candidates[name]()), theirs, truth)
            torch.cuda.synchronize(device)  # an error of the kernel itself shows here
            fit.append(name)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: the compiler's, the driver's, ours
            disable_candidate(op, name, device, str(error) if isinstance(error, Unfit) else first_line(error))
    return fit


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Raises Unfit where `ours` is out of bounds. `exact` may be `theirs`: then there is nothing more exact."""
    if [(t.shape, t.dtype) for t in ours] != [(t.shape, t.dtype) for t in theirs]:
        raise Unfit(f"its results are {_shapes(ours)}, where PyTorch's are {_shapes(theirs)}")
    for i, (made, library, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        if not made.dtype.is_floating_point:
            if not torch.equal(made, library):
                raise Unfit(f"result {i} differs from PyTorch's")
            continue
        error = relative(made, truth)
        if exact is theirs:
            bound = BOUNDS_TO_LIBRARY[made.dtype]
        else:
            bound = BOUNDS.get(made.dtype) or max(2 * relative(library, truth), 1e-6)
        if not error <= bound:  # NaN too
            raise Unfit(f"the error of result {i} is {error:.2g}, where {bound:.2g} is allowed")


def relative(made: Tensor, exact: Tensor) -> float:
    """||made - exact|| / ||exact||; of nothing, or of what is zero and has to be, 0. NaN where only one of them is."""
    difference = made.double() - exact.double()
    difference = torch.where(made.isnan() & exact.isnan() | (made == exact), 0, difference)
    norm = float(torch.linalg.vector_norm(exact.double().nan_to_num(0, 0, 0)))
    error = float(torch.linalg.vector_norm(difference))
    return error / norm if norm else error


def disable_candidate(op: str, name: str, device: torch.device, why: str) -> None:
    """Never takes `name` again in this process, and says so once."""
    if (op, name, device) in _wrong:
        return
    _wrong[op, name, device] = why
    warnings.warn(
        f"fastgan: {op} does without {name} on {device} from now on, because {why}. Please report this with what "
        "`fastgan doctor` says.",
        RuntimeWarning,
        stacklevel=2,
    )


def _time(runs: Sequence[Run]) -> list[float]:
    """Median time of each, in ms, taken in turn so that a change of the clock meets all of them."""
    events = [[(_event(), _event()) for _ in range(ROUNDS)] for _ in runs]
    for i in range(ROUNDS):
        # The launches queue up behind this: what is timed is the device's work, not the host's, which a graph omits.
        torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]
        for run, pairs in zip(runs, events, strict=True):
            pairs[i][0].record()
            run()
            pairs[i][1].record()
    torch.cuda.synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in pairs[1:]) for pairs in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _tensors(made: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (made,) if isinstance(made, Tensor) else tuple(made)


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors)
