"""Fréchet distance of features (FID: Heusel et al. 2017), and its extrapolation to infinitely many samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastgan.errors import FastganError
from fastgan.metrics.checks import at_least_one, few, gather, network_of, same_network, seed_of, source_name
from fastgan.metrics.result import Result
from fastgan.metrics.sources import features_of
from fastgan.metrics.statistics import FeatureStatistics

BIASED = "the score is biased upwards; compare only scores of equally many samples"


@dataclass(frozen=True)
class FidProtocol:
    """features: the network;  ddof: covariances are divided by n - ddof;  accumulation: the type of the moments."""

    features: str = "given"
    dimensions: int = 0
    ddof: int = 1
    accumulation: str = "float64"


def fid(real: Any, fake: Any, features: Any = None, *, batch_size: int = 64) -> Result:
    """|mu1 - mu2|² + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) of the features of both sides.

    real, fake: what `features_of` takes, FeatureStatistics, or the path of an .npz of them (mu and sigma).
    Where either side has no more samples than features, the distance comes from the features themselves, exactly.
    """
    first = statistics_of("real", real, features, batch_size)
    second = statistics_of("fake", fake, features, batch_size)
    same_network(first.size, second.size)
    protocol = FidProtocol(source_name(features), first.size)
    value = first.frechet_distance(second)
    return Result("fid", value, protocol, {}, first.count or 0, second.count or 0, doubts(first, second))


def statistics_of(name: str, source: Any, features: Any = None, batch_size: int = 64) -> FeatureStatistics:
    """Moments of all features of a source, batch by batch."""
    if isinstance(source, FeatureStatistics):
        out = source
    elif isinstance(source, (str, os.PathLike)) and str(source).endswith(".npz"):
        out = FeatureStatistics.load(source)
    else:
        out = FeatureStatistics(network_of(features))
        try:
            for batch in features_of(source, features, batch_size=batch_size):
                out.update(batch)
        except FastganError as error:
            raise FastganError(f"{name}: {error}") from None
    if out.count is not None and out.count < 2:
        raise FastganError(f"{name}: expected at least 2 samples, got {out.count}; add some")
    return out


def doubts(first: FeatureStatistics, second: FeatureStatistics) -> tuple[str, ...]:
    n_real, n_fake, size = known(first), known(second), first.size
    singular = few(n_real, n_fake, size + 1, f"not more than the {size:,} features: singular covariance")
    return (*singular, *few(n_real, n_fake, 10_000, BIASED))


def known(statistics: FeatureStatistics) -> int:
    """How many samples; as many as one likes where the file does not say."""
    return 1 << 62 if statistics.count is None else statistics.count


@dataclass(frozen=True)
class FidInfinityProtocol:
    """FIDs of `points` sizes from `smallest` to all fake samples; each of its own random subset; fit of FID on 1/N."""

    features: str
    dimensions: int
    points: int
    smallest: int
    seed: int
    subsets: str = "independent, without replacement"
    fit: str = "ordinary least squares on 1/N"
    ddof: int = 1


def fid_infinity(
    real: Any,
    fake: Any,
    features: Any = None,
    *,
    points: int = 15,
    smallest: int = 5000,
    seed: int = 0,
    batch_size: int = 64,
) -> Result:
    """FID as the number of fake samples goes to infinity: the intercept of a line in 1/N (Chong and Forsyth 2020).

    real: also FeatureStatistics or an .npz of them, as for fid; all of it is used at every point.
    fake: features or what they come from. With fewer than 2 * smallest samples the first point is at a tenth of them.
    values: slope, the sizes and the FID of each, and r2, the share of their variance that the line explains.
    """
    at_least_one(points=points, smallest=smallest)
    first = statistics_of("real", real, features, batch_size)
    samples = gather("fake", fake, features, batch_size=batch_size)
    same_network(first.size, samples.shape[1])
    count = len(samples)
    start = smallest if count >= 2 * smallest else max(count // 10, 2)
    if points < 2 or start >= count:
        raise FastganError(f"fid_infinity: expected 2 or more points and 3 or more samples, got {points} and {count}")
    rng = np.random.Generator(np.random.PCG64(seed_of(seed)))
    sizes = np.unique(np.linspace(start, count, points).astype(int))
    scores = []
    for size in sizes:
        subset = torch.from_numpy(rng.permutation(count)[:size]).to(samples.device)
        scores.append(first.frechet_distance(FeatureStatistics().update(samples[subset])))
    inverse = 1 / sizes.astype(float)
    slope, intercept = np.polyfit(inverse, scores, 1)
    rest = np.square(scores - (slope * inverse + intercept)).sum()
    spread = np.square(np.asarray(scores) - np.mean(scores)).sum()
    values: dict[str, float | tuple[float, ...]] = {
        "slope": float(slope),
        "r2": float(1 - rest / spread) if spread > 0 else 1.0,
        "sizes": tuple(map(float, sizes)),
        "scores": tuple(scores),
    }
    warnings = few(known(first), count, 10_000, "the line in 1/N holds for many samples only")
    protocol = FidInfinityProtocol(source_name(features), first.size, len(sizes), int(start), seed)
    return Result("fid_infinity", float(intercept), protocol, values, first.count or 0, count, tuple(warnings))
