"""The Fréchet distance of two normal distributions (Dowson and Landau 1982; Heusel et al. 2017 on features).

    d² = |mu1 - mu2|² + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

As everywhere in the field the squared distance is what "the Fréchet distance" means.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.arrays import tensor_of
from fastgan.kernels.matrix_root import Method, sqrtm_trace


def frechet_distance(mu1: Any, cov1: Any, mu2: Any, cov2: Any, method: Method = "auto") -> Any:
    """mu: [..., d], cov: [..., d, d], NumPy arrays or torch tensors. A float, or an array [...] where there are more.

    Never negative: a difference that rounding brings below 0 is 0.
    """
    kinds = [isinstance(v, Tensor) for v in (mu1, cov1, mu2, cov2)]
    cov1, cov2 = tensor_of("cov1", cov1), tensor_of("cov2", cov2)
    first, second = mean_of("mu1", mu1, cov1), mean_of("mu2", mu2, cov2)
    root = sqrtm_trace(cov1, cov2, method)
    shift = (first - second).square().sum(-1)
    traces = sum(cov.double().diagonal(dim1=-2, dim2=-1).sum(-1) for cov in (cov1, cov2))
    distance = distance_from(shift, traces, root)
    if not distance.dim():
        return float(distance)
    return distance if any(kinds) else distance.numpy()


def distance_from(shift: Tensor, traces: Any, root: Any) -> Tensor:
    """|mu1 - mu2|², tr S1 + tr S2 and tr (S1 S2)^(1/2), each [...]."""
    distance: Tensor = shift + traces - 2 * torch.as_tensor(root, dtype=torch.float64, device=shift.device)
    return distance.clamp_min(0)


def mean_of(name: str, mu: Any, cov: Any) -> Tensor:
    given = tensor_of(name, mu)
    if given.is_complex() or not given.dim() or tuple(given.shape[-1:]) != tuple(cov.shape[-1:]):
        raise FastganError(
            f"{name}: expected a mean [..., d] that goes with its covariance {list(cov.shape)}, got {list(given.shape)}"
        )
    if not bool(given.isfinite().all()):
        raise FastganError(
            f"{name}: expected finite values, got NaN or infinity; check the features that it was made of"
        )
    return given.double()
