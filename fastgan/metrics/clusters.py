"""k-means for the PRD curve: several independent runs at once, so that a few large products do all of them.

Mini-batches as in Sculley (2010), seeded by k-means++ (Arthur and Vassilvitskii 2007) on a subset, the best of several
seedings per run; then a few full iterations (Lloyd).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 512  # samples at a time: they fit in a cache


@dataclass(frozen=True)
class ClusterOptions:
    """seedings per run on `subset` samples, mini-batch steps, full iterations; all random numbers are from seed."""

    seed: int = 0
    seedings: int = 10
    subset: int = 3072
    batch: int = 1024
    steps: int = 20
    full: int = 4


def cluster(x: Tensor, clusters: int, runs: int, options: ClusterOptions) -> Tensor:
    """x: [n, d]. Labels [runs, n] of independent runs."""
    points = scaled(x)
    draw = torch.Generator().manual_seed(options.seed)
    centres = seeded(points, clusters, runs, options, draw)
    centres = in_batches(points, centres, options, draw)
    for _ in range(options.full):
        centres = moved(points, centres, assign(points, centres))
    return assign(points, centres)


def scaled(x: Tensor) -> Tensor:
    """Centred and over the largest absolute value, fp32: clusters do not depend on either, so roughly will do."""
    wide = torch.promote_types(x.dtype, torch.float32)
    centre = x.mean(0, dtype=wide)
    size = torch.zeros((), dtype=wide, device=x.device)
    for piece in torch.split(x, PIECE):
        size = torch.stack([size, *(v.abs() for v in torch.aminmax(piece.to(wide) - centre))]).amax()
    size = torch.where(size > 0, size, 1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for piece, into in zip(torch.split(x, PIECE), torch.split(out, PIECE), strict=True):
        into.copy_((piece.to(wide) - centre).div_(size))
    return out


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """points: [n, d], centres: [..., k, d] -> [n, ..., k] squared distances less |point|²"""
    flat = centres.flatten(0, -2)
    out = torch.addmm(flat.square().sum(1), points, flat.mT, alpha=-2)
    return out.view(len(points), *centres.shape[:-1])


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """centres: [runs, k, d]. The nearest one of each run, [runs, n]."""
    parts = [distances(part, centres).argmin(-1).mT for part in torch.split(points, 8192)]
    return torch.cat(parts, 1)


def seeded(points: Tensor, clusters: int, runs: int, options: ClusterOptions, draw: torch.Generator) -> Tensor:
    """[runs, clusters, d]: of each run the seeding whose sum of squared distances on the subset is least."""
    size = min(len(points), max(options.subset, 3 * clusters))
    some = points[torch.randperm(len(points), generator=draw)[:size].to(points.device)]
    squares = some.square().sum(1)
    tries = runs * options.seedings
    chosen = torch.randint(size, (tries, 1), generator=draw).to(points.device)
    nearest = torch.full((size, tries), torch.inf, device=points.device)
    for _ in range(clusters - 1):
        latest = distances(some, some[chosen[:, -1:]])[..., 0] + squares[:, None]
        nearest = torch.minimum(nearest, latest.clamp_min_(0))
        cumulated = nearest.double().cumsum(0)
        at = torch.rand(tries, generator=draw, dtype=torch.float64).to(points.device) * cumulated[-1]
        pick = torch.searchsorted(cumulated.mT.contiguous(), at[:, None], right=True).clamp_max_(size - 1)
        chosen = torch.cat((chosen, pick), 1)
    latest = distances(some, some[chosen[:, -1:]])[..., 0] + squares[:, None]
    inertia = torch.minimum(nearest, latest.clamp_min_(0)).sum(0).view(runs, options.seedings)
    best = inertia.argmin(1) + torch.arange(runs, device=points.device) * options.seedings
    return some[chosen[best]]


def in_batches(points: Tensor, centres: Tensor, options: ClusterOptions, draw: torch.Generator) -> Tensor:
    """Each batch moves every centre to the mean of all samples that it has had so far."""
    runs, clusters, _ = centres.shape
    weight = points.new_zeros(runs, clusters, 1)
    for _ in range(options.steps):
        rows = torch.randint(len(points), (min(options.batch, len(points)),), generator=draw).to(points.device)
        batch = points[rows]
        total, count = totals(batch, assign(batch, centres), clusters)
        weight += count
        centres = centres + torch.where(weight > 0, (total - count * centres) / weight.clamp_min(1), 0.0)
    return centres


def moved(points: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Each centre to the mean of its samples; one without samples stays."""
    total, count = totals(points, labels, centres.shape[1])
    return torch.where(count > 0, total / count.clamp_min(1), centres)


def totals(points: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """labels: [runs, n]. Sum [runs, k, d] and number [runs, k, 1] of the samples of each cluster."""
    runs = len(labels)
    offset = torch.arange(runs, device=labels.device)[:, None] * clusters
    member = points.new_zeros(runs * clusters, len(points))
    member.scatter_(0, labels + offset, 1.0)
    return (member @ points).view(runs, clusters, -1), member.sum(1).view(runs, clusters, 1)
