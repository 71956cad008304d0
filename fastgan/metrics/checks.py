"""What every metric asks of its input, and when its value is not to be trusted."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics.sources import features_of
from fastgan.metrics.statistics import FeatureStatistics


def gather(name: str, source: Any, features: Any = None, *, batch_size: int = 64, least: int = 2) -> Tensor:
    """All features of a source, [n, d], finite, n >= least. They stay on the device and in the type that they have."""
    if isinstance(source, FeatureStatistics) or (
        isinstance(source, (str, os.PathLike)) and os.fspath(source).endswith(".npz")
    ):
        raise FastganError(
            f"{name}: needs the samples, and statistics have their mean and covariance alone; give features or images"
        )
    try:
        batches = list(features_of(source, features, batch_size=batch_size))
    except FastganError as error:
        raise FastganError(f"{name}: {error}") from None
    sizes = {batch.shape[1] for batch in batches}
    if len(sizes) > 1:
        raise FastganError(f"{name}: expected batches of one size, got {sorted(sizes)} features per sample")
    count = sum(len(batch) for batch in batches)
    if count < least:
        raise FastganError(f"{name}: expected at least {least} samples, got {count}; add some")
    out = batches[0] if len(batches) == 1 else torch.cat(batches)
    if not all(bool(bound.isfinite()) for bound in torch.aminmax(out)):  # NaN shows in both
        rows = int((~out.isfinite().all(1)).sum())
        raise FastganError(
            f"{name}: expected finite features, got NaN or infinity in {rows} of {count} samples; "
            "check the network and its input"
        )
    return out


def both(real: Any, fake: Any, features: Any = None, *, batch_size: int = 64, least: int = 2) -> tuple[Tensor, Tensor]:
    """Features of both sides, [n, d] and [m, d], of one type and on one device (that of `real`)."""
    first = gather("real", real, features, batch_size=batch_size, least=least)
    second = gather("fake", fake, features, batch_size=batch_size, least=least)
    same_network(first.shape[1], second.shape[1])
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(first.device, dtype)


def same_network(real: int, fake: int) -> None:
    """Refuses sides with unequal numbers of features."""
    if real != fake:
        raise FastganError(f"real has {real} features per sample and fake {fake}; use the same network for both")


def seed_of(seed: int) -> int:
    """A seed that NumPy takes."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise FastganError(f"seed: expected a number from 0 to 4294967295, got {seed!r}")
    return seed


def at_least_one(**counts: int) -> None:
    """Refuses a count below 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise FastganError(f"{name}: expected a number of 1 or more, got {count!r}")


def few(n_real: int, n_fake: int, least: int, why: str) -> list[str]:
    """A warning for each side with fewer than `least` samples."""
    sides = (("real", n_real), ("fake", n_fake))
    return [f"{count:,} {side} samples, fewer than {least:,}: {why}" for side, count in sides if count < least]


def source_name(features: Any) -> str:
    """Of a feature network, for the protocol."""
    if features is None:
        return "given"
    if isinstance(features, str):
        return features
    name = getattr(features, "name", None)
    return name if isinstance(name, str) else getattr(features, "__name__", type(features).__name__)


def network_of(features: Any) -> str:
    """What FeatureStatistics keep of a network: all that decides features, in words; "" where it does not say."""
    p = getattr(features, "protocol", None)
    if p is None or not hasattr(p, "weights"):
        return ""
    return f"{source_name(features)}, resize {p.resize}, weights {p.weights[:16]}"
