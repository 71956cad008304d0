"""Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

Both surround each sample by a ball that reaches to its k-th nearest neighbour in its own set:

    precision = share of fake samples in some real ball        recall = share of real samples in some fake ball
    density = real balls that contain a fake sample, mean / k  coverage = share of real balls with a fake sample
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastgan.metrics.checks import both, few, source_name
from fastgan.metrics.neighbours import Balls, Rule, balls
from fastgan.metrics.result import Result


@dataclass(frozen=True)
class NeighbourProtocol:
    """k: neighbours, not counting the sample itself;  inclusive: `<=` instead of `<` the radius."""

    features: str
    dimensions: int
    k: int
    inclusive: bool
    distance: str = "euclidean, decided in float64"


def precision_recall(
    real: Any, fake: Any, features: Any = None, *, k: int = 3, inclusive: bool = True, batch_size: int = 64
) -> Result:
    """value: precision; values: precision, recall, f_score. The defaults are those of its authors."""
    x, y = both(real, fake, features, batch_size=batch_size)
    return of_precision(x, y, balls(x, y, [Rule(k, inclusive)])[0], protocol(features, x, k, inclusive))


def density_coverage(
    real: Any, fake: Any, features: Any = None, *, k: int = 5, inclusive: bool = False, batch_size: int = 64
) -> Result:
    """value: density, which can exceed 1; values: density, coverage. The defaults are those of the package prdc."""
    x, y = both(real, fake, features, batch_size=batch_size)
    return of_density(x, y, balls(x, y, [Rule(k, inclusive)])[0], protocol(features, x, k, inclusive))


def prdc(
    real: Any,
    fake: Any,
    features: Any = None,
    *,
    precision: Rule = Rule(3, True),  # noqa: B008  (it is frozen)
    density: Rule = Rule(5, False),  # noqa: B008
    batch_size: int = 64,
) -> tuple[Result, Result]:
    """precision_recall and density_coverage from the same distances, each with its own rule."""
    x, y = both(real, fake, features, batch_size=batch_size)
    first, second = balls(x, y, [precision, density])
    return (
        of_precision(x, y, first, protocol(features, x, precision.k, precision.inclusive)),
        of_density(x, y, second, protocol(features, x, density.k, density.inclusive)),
    )


def protocol(features: Any, x: Tensor, k: int, inclusive: bool) -> NeighbourProtocol:
    return NeighbourProtocol(source_name(features), x.shape[1], k, inclusive)


def of_precision(x: Tensor, y: Tensor, found: Balls, protocol: NeighbourProtocol) -> Result:
    precision, recall = share(found.around_fake > 0), share(found.around_real > 0)
    both = precision + recall
    values = {"precision": precision, "recall": recall, "f_score": 2 * precision * recall / both if both else 0.0}
    return Result("precision_recall", precision, protocol, values, len(x), len(y), doubts(x, y))


def of_density(x: Tensor, y: Tensor, found: Balls, protocol: NeighbourProtocol) -> Result:
    density = float(found.around_fake.double().mean()) / protocol.k
    values = {"density": density, "coverage": share(found.covered)}
    return Result("density_coverage", density, protocol, values, len(x), len(y), doubts(x, y))


def share(which: Tensor) -> float:
    return float(which.double().mean())


def doubts(x: Tensor, y: Tensor) -> tuple[str, ...]:
    unequal = [f"{len(x):,} real and {len(y):,} fake samples: balls of unlike size"] if len(x) != len(y) else []
    return (*few(len(x), len(y), 10_000, "the score depends on the number of samples"), *unequal)
