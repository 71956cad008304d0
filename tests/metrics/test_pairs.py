"""Diversity: which pairs count, and how."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from parity_inputs import generator, images
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics import diversity, ms_ssim, ssim


def mean_difference(a: Tensor, b: Tensor) -> Tensor:
    return (a.double().mean((1, 2, 3)) - b.double().mean((1, 2, 3))).abs()


def test_all_pairs_of_each_group() -> None:
    x = generator(1).uniform(-1, 1, (12, 1, 4, 4))
    means = x.mean((1, 2, 3))
    for group, name in ((None, "one"), (4, "three")):
        size = group or 12
        want = [
            abs(means[start + i] - means[start + j])
            for start in range(0, 12, size)
            for i, j in itertools.combinations(range(size), 2)
        ]
        got = diversity(x, mean_difference, group=group, batch_size=5)
        assert got.value == pytest.approx(np.mean(want), rel=1e-12), name
        assert got.values == pytest.approx({"std": np.std(want), "least": min(want), "most": max(want)}, rel=1e-12)
        assert got.protocol.groups == 12 // size
        assert got.protocol.distance == "mean_difference"


def test_drawn_pairs_are_of_different_images_of_one_group() -> None:
    seen = set()

    def record(a: Tensor, b: Tensor) -> Tensor:
        for i, j in zip(a[:, 0, 0, 0].tolist(), b[:, 0, 0, 0].tolist(), strict=True):
            assert i != j
            assert int(i) // 3 == int(j) // 3
            seen.add((i, j))
        return torch.zeros(len(a))

    x = np.arange(9.0)[:, None, None, None] * np.ones((1, 1, 2, 2))
    got = diversity(x, record, group=3, pairs=500)
    assert len(seen) == 18  # every ordered pair
    assert got.protocol.pairs == 500
    assert not got.warnings
    assert "3 pairs" in diversity(x[:3], record).warnings[0]


def test_structural_similarity_of_pairs() -> None:
    x = images(1, 3, 170, 170)
    for distance, function in (("ms_ssim", ms_ssim), ("ssim", ssim)):
        want = [function(x[i : i + 1], x[j : j + 1]).value for i, j in ((0, 1), (0, 2), (1, 2))]
        got = diversity(x, distance)
        assert got.value == pytest.approx(np.mean(want), rel=1e-12)
        assert got.protocol.ssim is not None
        assert got.protocol.ssim.data_range == 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 5}, "groups of 2 or more images, 6"),
        ({"group": 1}, "groups of 2"),
        ({"pairs": "some"}, "'some'"),
        ({"pairs": 0}, "pairs"),
        ({"distance": "lpips"}, "'lpips'"),
        ({"distance": lambda a, b: torch.zeros(2)}, "15 finite"),
        ({"distance": "ms_ssim"}, "161 pixels"),
        ({"fake": np.zeros((6, 4, 4))}, r"\[N, C, H, W\]"),
        ({"fake": np.zeros((1, 1, 4, 4))}, "groups of 2"),
        ({"fake": np.full((6, 1, 4, 4), np.nan)}, "NaN"),
    ],
)
def test_bad_input(options: dict[str, object], message: str) -> None:
    given = {"fake": np.zeros((6, 1, 4, 4)), "distance": mean_difference, **options}
    with pytest.raises(FastganError, match=message) as error:
        diversity(given.pop("fake"), **given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
