"""Precision and recall of distributions as a curve (PRD: Sajjadi et al. 2018).

Both sets are clustered together; with the shares P and Q of real and fake samples per cluster, each slope l gives

    precision(l) = sum_i min(l P_i, Q_i)        recall(l) = precision(l) / l
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics.checks import at_least_one, both, few, seed_of, source_name
from fastgan.metrics.clusters import ClusterOptions, cluster
from fastgan.metrics.result import Result

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class PrdProtocol:
    """As the authors' code: the curve is the mean over runs of clustering, F_beta is of the mean curve.

    balanced: the larger side is cut to the size of the smaller one.
    """

    features: str
    dimensions: int
    clusters: int
    angles: int
    runs: int
    beta: float
    balanced: bool
    seed: int
    epsilon: float
    clustering: ClusterOptions


def prd(
    real: Any,
    fake: Any,
    features: Any = None,
    *,
    clusters: int = 20,
    angles: int = 1001,
    runs: int = 10,
    beta: float = 8.0,
    balanced: bool = True,
    seed: int = 0,
    batch_size: int = 64,
) -> Result:
    """value: F_8, the recall-like number; values: f8, f8_inverse (F_1/8, precision-like), and the curve's points.

    precision and recall: [angles] each, from the slope of almost 0 to that of almost infinity.
    """
    at_least_one(clusters=clusters, runs=runs)
    if angles < 3 or not math.isfinite(beta) or beta <= 0:
        raise FastganError(f"prd: expected 3 or more angles and beta > 0, got {angles} and {beta}")
    x, y = both(real, fake, features, batch_size=batch_size)
    options = ClusterOptions(seed=seed_of(seed))
    if balanced and len(x) != len(y):
        rng = np.random.Generator(np.random.PCG64(seed))
        size = min(len(x), len(y))
        x, y = (
            z if len(z) == size else z[torch.from_numpy(rng.permutation(len(z))[:size]).to(z.device)] for z in (x, y)
        )
    joint = torch.cat((x, y))
    if len(joint) < clusters:
        raise FastganError(f"clusters: expected at most the {len(joint)} samples of both sides, got {clusters}")
    labels = cluster(joint, clusters, runs, options)
    protocol = PrdProtocol(
        source_name(features), x.shape[1], clusters, angles, runs, beta, balanced, seed, 1e-10, options
    )
    p, q = (shares(part, clusters) for part in (labels[:, : len(x)], labels[:, len(x) :]))
    precision, recall = (v.mean(0) for v in curves(p, q, angles, protocol.epsilon))
    high, low = f_pair(precision, recall, beta)
    values = {"f8": high, "f8_inverse": low} if beta == 8 else {"f_beta": high, "f_beta_inverse": low}
    points = {"precision": tuple(precision.tolist()), "recall": tuple(recall.tolist())}
    warnings = few(len(x), len(y), 10_000, "the score depends on the number of samples")
    return Result("prd", high, protocol, {**values, **points}, len(x), len(y), tuple(warnings))


def shares(labels: Tensor, clusters: int) -> Array:
    """labels: [runs, n] -> [runs, clusters]"""
    counts = np.stack([np.bincount(run, minlength=clusters) for run in labels.cpu().numpy()])
    return counts / labels.shape[1]


def curves(p: Array, q: Array, angles: int = 1001, epsilon: float = 1e-10) -> tuple[Array, Array]:
    """p, q: [..., clusters] shares of real and fake. (precision, recall) [..., angles], at equally spaced angles."""
    slopes = np.tan(np.linspace(epsilon, np.pi / 2 - epsilon, angles))
    precision = np.minimum(slopes[:, None] * p[..., None, :], q[..., None, :]).sum(-1)
    return np.clip(precision, 0, 1), np.clip(precision / slopes, 0, 1)


def f_pair(precision: Array, recall: Array, beta: float = 8.0) -> tuple[float, float]:
    """Largest F_beta and F_1/beta on the curve."""

    def largest(b: float) -> float:
        below = b**2 * precision + recall
        return float(((1 + b**2) * precision * recall / np.where(below > 0, below, 1)).max())

    return largest(beta), largest(1 / beta)
