"""How the critic itself scores samples: does it tell real from fake, and is it as sure as it is right?

A critic trained with the non-saturating loss estimates log p_real(x) / p_fake(x) as its logit, so that sigmoid(logit)
should be the probability of "real" where both kinds are equally many (Goodfellow et al. 2014, proposition 1). Both
sides count equally here, whatever their numbers. The real samples should be held out: a critic that knows its training
samples by heart scores those higher than others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.arrays import tensor_of
from fastgan.metrics.checks import at_least_one
from fastgan.metrics.result import Result


@dataclass(frozen=True)
class CalibrationProtocol:
    """bins: of equal width in probability;  threshold: of the logit, above which a sample is called real."""

    bins: int
    threshold: float = 0.0
    weights: str = "real and fake count equally"


def critic_calibration(real: Any, fake: Any, critic: Callable[[Any], Any] | None = None, *, bins: int = 15) -> Result:
    """value: expected calibration error, sum over bins of weight |share of real - mean sigmoid(logit)|.

    real, fake: logits [n], [n, 1] or maps [n, ...] (their mean counts); with `critic`, batches of samples to score.
    values:
        accuracy, accuracy_real, accuracy_fake   share on the right side of the threshold
        auc        probability that a real sample scores higher than a fake one; ties count half
        brier      mean (sigmoid(logit) - 1[real])²
        real_mean, fake_mean    mean logits
        overlap    1 - the largest difference of the two distribution functions (Kolmogorov and Smirnov): 1 where the
                   critic sees no difference, 0 where a threshold separates the sides
        confidence, real_share, weight    of each bin that has samples: the points of a reliability diagram
    """
    at_least_one(bins=bins)
    x, y = scores("real", real, critic), scores("fake", fake, critic)
    logits = np.concatenate((x, y))
    is_real = np.concatenate((np.ones(len(x)), np.zeros(len(y))))
    weight = np.concatenate((np.full(len(x), 0.5 / len(x)), np.full(len(y), 0.5 / len(y))))
    probability = np.exp(-np.logaddexp(0, -logits))
    confidence, share, total = reliability(probability, is_real, weight, bins)
    below_real = np.searchsorted(np.sort(x), np.sort(logits), "right") / len(x)
    below_fake = np.searchsorted(np.sort(y), np.sort(logits), "right") / len(y)
    hits_real, hits_fake = float((x > 0).mean()), float((y <= 0).mean())
    values: dict[str, float | tuple[float, ...]] = {
        "accuracy": (hits_real + hits_fake) / 2,
        "accuracy_real": hits_real,
        "accuracy_fake": hits_fake,
        "auc": area(x, y),
        "brier": float((weight * np.square(probability - is_real)).sum()),
        "real_mean": float(x.mean()),
        "fake_mean": float(y.mean()),
        "overlap": float(1 - np.abs(below_real - below_fake).max()),
        "confidence": tuple(confidence.tolist()),
        "real_share": tuple(share.tolist()),
        "weight": tuple(total.tolist()),
    }
    error = float((total * np.abs(share - confidence)).sum())
    least = min(len(x), len(y))
    warnings = [] if least >= 1000 else [f"{least} samples on one side, fewer than 1,000: the error is overestimated"]
    return Result("critic_calibration", error, CalibrationProtocol(bins), values, len(x), len(y), tuple(warnings))


def scores(name: str, source: Any, critic: Callable[[Any], Any] | None) -> Any:
    """One logit per sample, [n] fp64 in NumPy."""
    if critic is not None:
        batches = [source] if isinstance(source, (np.ndarray, Tensor)) else source
        with torch.no_grad():
            parts = [critic(tensor_of(name, b)) for batch in batches for b in pieces(batch)]
    elif isinstance(source, (np.ndarray, Tensor)):
        parts = [source]
    elif isinstance(source, Iterable) and not isinstance(source, str):
        parts = list(source)
    else:
        raise FastganError(f"{name}: expected logits [n], got {type(source).__name__}")
    tensors = [tensor_of(name, part).double() for part in parts]
    if not all(part.dim() for part in tensors):
        raise FastganError(f"{name}: expected logits [n] for n samples, got single numbers")
    logits = torch.cat([part.reshape(len(part), -1).mean(1) if len(part) else part.flatten() for part in tensors])
    if len(logits) < 2:
        raise FastganError(f"{name}: expected at least 2 samples, got {len(logits)}")
    if not bool(logits.isfinite().all()):
        raise FastganError(f"{name}: expected finite logits, got NaN or infinity; has the critic diverged?")
    return logits.cpu().numpy()


def pieces(batch: Any, size: int = 64) -> Iterable[Any]:
    return (batch[start : start + size] for start in range(0, len(batch), size))


def reliability(probability: Any, is_real: Any, weight: Any, bins: int) -> tuple[Any, Any, Any]:
    """Of each bin that has samples: mean probability, share of real, weight."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    total = np.bincount(place, weight, bins)
    used = total > 0
    confidence = np.bincount(place, weight * probability, bins)[used] / total[used]
    return confidence, np.bincount(place, weight * is_real, bins)[used] / total[used], total[used]


def area(x: Any, y: Any) -> float:
    """Share of pairs in which x exceeds y, ties counting half."""
    ordered = np.sort(y)
    below = np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")
    return float(below.mean() / (2 * len(y)))
