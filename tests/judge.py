"""How good generated digits are, judged by a classifier that never saw the digits it is calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

Pictures: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Verdict:
    """accuracy:   of the classifier on held-out real digits
    confidence: mean largest probability on the generated, over that on held-out real digits
    shares:     [10] fraction of the generated in each class
    distance:   median distance of a generated digit to its nearest real one, over that of a real one to its nearest
                other; near 0 for copies
    closest:    the same for the closest twentieth: the 5% quantiles
    """

    accuracy: float
    confidence: float
    shares: NDArray[np.float64]
    distance: float
    closest: float


def judge(pictures: Pictures, reals: Pictures, labels: NDArray[np.int64]) -> Verdict:
    """pictures, reals: [N, 32, 32], [M, 32, 32], judged by their 8x8 block means; labels: [M] of the reals."""
    made, real = block_means(pictures), block_means(reals)
    train, held_out, labels_train, labels_held_out = train_test_split(
        real, labels, test_size=0.3, random_state=0, stratify=labels
    )
    classifier = kernel_classifier().fit(train, labels_train)
    on_real, on_made = classifier.predict_proba(held_out), classifier.predict_proba(made)
    to_real = nearest(made, real)
    among_real = nearest(real, real, skip_self=True)
    return Verdict(
        accuracy=float((on_real.argmax(1) == labels_held_out).mean()),
        confidence=float(on_made.max(1).mean() / on_real.max(1).mean()),
        shares=np.bincount(on_made.argmax(1), minlength=10) / len(made),
        distance=float(np.median(to_real) / np.median(among_real)),
        closest=float(np.quantile(to_real, 0.05) / np.quantile(among_real, 0.05)),
    )


def kernel_classifier() -> Pipeline:
    """A smooth one: sure of real digits, unsure between them, unlike one that is calibrated afterwards."""
    kernel = Nystroem(gamma=0.001, n_components=600, random_state=0)
    return make_pipeline(kernel, LogisticRegression(C=10, max_iter=2000))


def agreement(pictures: Pictures, asked: NDArray[np.int64], reals: Pictures, labels: NDArray[np.int64]) -> float:
    """Share of `pictures` [N, S, S] that a classifier of the real digits takes for what they were asked to be [N]."""
    classifier = kernel_classifier().fit(block_means(reals), labels)
    return float((classifier.predict(block_means(pictures)) == asked).mean())


def block_means(pictures: Pictures) -> NDArray[np.float64]:
    """[N, S, S] -> [N, 64], on the 0 to 16 scale of scikit-learn's 8x8 digits."""
    block = pictures.shape[1] // 8
    return pictures.reshape(-1, 8, block, 8, block).mean((2, 4)).reshape(len(pictures), 64) * (16 / 255)


def nearest(
    points: NDArray[np.float64], others: NDArray[np.float64], *, skip_self: bool = False
) -> NDArray[np.float64]:
    """Distance of each of `points` [N, D] to its nearest of `others` [M, D]."""
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    if skip_self:
        np.fill_diagonal(squares, np.inf)
    return np.sqrt(squares.min(1).clip(0))
