"""Inception score (Salimans et al. 2016): exp of the mean of KL(p(y|x) | p(y)), over splits of the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastgan.errors import FastganError
from fastgan.metrics.checks import at_least_one, gather, seed_of, source_name
from fastgan.metrics.result import Result


@dataclass(frozen=True)
class InceptionScoreProtocol:
    """The defaults are those of torch-fidelity: shuffled by RandomState(seed), splits of n/splits samples, ddof 0."""

    features: str
    classes: int
    splits: int
    shuffle: bool
    seed: int
    ddof: int = 0


def inception_score(
    fake: Any,
    features: Any = None,
    *,
    splits: int = 10,
    shuffle: bool = True,
    seed: int = 2020,
    ddof: int = 0,
    batch_size: int = 64,
) -> Result:
    """fake: what `features_of` takes, with logits [n, classes] for features. values: std over the splits."""
    at_least_one(splits=splits)
    logits = gather("fake", fake, features, batch_size=batch_size)
    count, classes = logits.shape
    if count < splits or splits <= ddof:
        raise FastganError(f"splits: expected more than {ddof} and at most the {count} samples, got {splits}")
    if shuffle:
        order = np.random.RandomState(seed_of(seed)).permutation(count)
        logits = logits[torch.from_numpy(order).to(logits.device)]
    scores = []
    for i in range(splits):
        log_p = logits[i * count // splits : (i + 1) * count // splits].double().log_softmax(1)
        log_q = log_p.logsumexp(0) - np.log(len(log_p))  # no logarithm of a probability that has underflowed to 0
        scores.append(float((log_p.exp() * (log_p - log_q)).sum(1).mean().exp()))
    warnings = [] if count >= 10_000 else [f"{count:,} samples, fewer than 10,000: the score is biased downwards"]
    if count // splits < classes:
        warnings.append(f"splits of {count // splits:,} samples for {classes:,} classes")
    protocol = InceptionScoreProtocol(source_name(features), classes, splits, shuffle, seed, ddof)
    values = {"std": float(np.std(scores, ddof=ddof))}
    return Result("inception_score", float(np.mean(scores)), protocol, values, 0, count, tuple(warnings))
