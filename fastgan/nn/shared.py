"""Batch normalisation of any network by the statistics of several processes: as if they had one batch together."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgan.errors import FastganError
from fastgan.nn.chain import run_chain
from fastgan.nn.statistics import Reduce


def share_statistics(module: nn.Module, reduce: Reduce) -> int:
    """From now on all batch normalisations in `module` take their statistics in training over several processes.

    reduce: sums a float64 vector over them, in place, and returns it (fastgan.dist.sum_over_ranks)
    Fused ones do so within their fused pass; the others become one that is computed by our layers. State, names and
    the classes' names stay. Returns how many there are; nn.SyncBatchNorm, which has a group of its own, is left alone.
    Raises FastganError for a subclass whose forward is its own, whose statistics nobody can know.
    """
    norms = [(name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm)]
    norms = [(name, m) for name, m in norms if not isinstance(m, nn.SyncBatchNorm)]
    for name, norm in norms:
        if not hasattr(type(norm), "normalise"):
            if type(norm).forward is not _BatchNorm.forward:
                raise FastganError(
                    f"{name or 'the network'}: {type(norm).__name__} has a forward of its own, so its statistics "
                    "cannot be taken over several ranks; use nn.BatchNorm2d, or train on one rank"
                )
            made: Any = _sharing
            norm.__class__ = made(type(norm))
        norm.process_group = reduce  # type: ignore[assignment]
    return len(norms)


@functools.cache
def _sharing(cls: Any) -> Any:
    """A subclass that looks like `cls`, and runs by our layers also where it is not part of something fused."""

    def normalise(self: Any, x: Tensor) -> Tensor:
        out: Tensor = cls.forward(self, x)
        return out

    def forward(self: Any, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return normalise(self, x)
        return run_chain(x, ((f"{cls.__name__}({self.num_features})", None, self, "none", 0.0),))

    body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    looks = {"normalise": normalise, "forward": forward, "_fastgan_original": cls}
    return type(cls)(cls.__name__, (cls,), body | looks)
