"""Ranks share an evaluation: two of them, or three of which one has nothing to do, come to what one comes to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import in_ranks
from torch import Tensor

from fastgan.dist import Ranks, StoppedElsewhere
from fastgan.errors import FastganError
from fastgan.evaluation import METRICS, evaluate, numbers_of
from fastgan.features import Extractor, FeatureProtocol
from fastgan.metrics import FeatureStatistics
from fastgan.metrics.sources import Images, images_of

REAL = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (90, 3, 8, 8), dtype=np.uint8))
FAKE = torch.from_numpy(np.random.default_rng(2).integers(0, 200, (70, 3, 8, 8), dtype=np.uint8))


def network() -> tuple[Extractor, list[int]]:
    """Convolutions, so that how a batch is composed may show; and how many images it has seen."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 8))
    seen: list[int] = []

    def run(images: Tensor) -> Tensor:
        seen.append(len(images))
        out: Tensor = layers(images.float() / 255)
        return out

    return Extractor(FeatureProtocol("mine", "", "", "", ""), run, torch.device("cpu"), lambda x: x), seen


def scores(ranks: Ranks, cache: str) -> dict[str, Tensor]:
    """Of all metrics, twice: the second time with the real side from the cache, and of images without an order."""
    os.environ["FASTGAN_CACHE"] = cache
    extract, seen = network()
    names = list(METRICS)
    found = [numbers_of(evaluate(images_of(REAL), images_of(FAKE), extract, names, batch_size=16, ranks=ranks))]
    shares = [sum(seen)]
    drawn = Images("drawn", lambda size: iter(FAKE.split(size)))  # type: ignore[no-untyped-call]
    found.append(numbers_of(evaluate(images_of(REAL), drawn, extract, names, batch_size=16, ranks=ranks)))
    shares.append(sum(seen) - shares[0])
    found.append(numbers_of(evaluate(images_of(REAL[:80]), drawn, extract, ["fid"], batch_size=16, ranks=ranks)))
    out = {key: torch.tensor(v, dtype=torch.float64) for key, v in found[0].items()}
    again = {f"again.{key}": torch.tensor(v, dtype=torch.float64) for key, v in found[1].items()}
    return out | again | {"statistics": torch.tensor(found[2]["fid"]), "shares": torch.tensor(shares)}


def test_scores_of_two_ranks_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", "")  # to be restored
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has
    one = scores(Ranks(), str(tmp_path / "cache-1"))
    torch.set_num_threads(threads)
    two = in_ranks(2, "metrics.test_ranks:scores", tmp_path, cache=str(tmp_path / "cache-2"))
    assert one["shares"].tolist() == [160, 70]
    assert [part["shares"].tolist() for part in two] == [[48 + 42 - 10 + 6, 38], [42 + 32, 32]]
    for part in two:
        for key in set(one) - {"shares", "statistics"}:
            assert torch.equal(part[key], one[key]), key
        assert abs(part["statistics"] - one["statistics"]) < 1e-12 * abs(one["statistics"])


CASES = {"many": (40, 1e3), "few": (5, 0.0)}


def reduced(ranks: Ranks) -> dict[str, Tensor]:
    """Statistics of rows of which the last of three ranks has none; and a mistake of one rank."""
    out: dict[str, Tensor] = {}
    for name, (n, offset) in CASES.items():
        rows = torch.from_numpy(np.random.default_rng(3).standard_normal((n, 5)) + offset)
        mine = [rows[:1], rows[1:], rows[:0]][ranks.rank] if ranks.world > 1 else rows
        statistics = FeatureStatistics()
        if len(mine):
            statistics.update(mine)
        assert statistics.all_reduce(ranks).count == n
        distance = statistics.frechet_distance(FeatureStatistics().update(rows * 0.5 + offset / 2))
        out |= {f"{name}.mean": statistics.mean(), f"{name}.cov": statistics.cov()}
        out[f"{name}.distance"] = torch.tensor(distance, dtype=torch.float64)
    if ranks.world > 1:
        with pytest.raises((FastganError, StoppedElsewhere)):
            FeatureStatistics().update(torch.zeros(2, 5 + ranks.rank)).all_reduce(ranks)
    return out


def test_statistics_of_three_ranks_are_those_of_one(tmp_path: Path) -> None:
    one = reduced(Ranks())
    for part in in_ranks(3, "metrics.test_ranks:reduced", tmp_path):
        for key, value in part.items():
            assert (value - one[key]).norm() <= 1e-12 * one[key].norm(), key
