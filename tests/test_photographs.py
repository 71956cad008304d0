"""The contests on photographs are fair, and results of one do not touch another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks import photographs
from benchmarks.photo_contests import Contest
from fastgan import bench
from fastgan.data import DataOptions, open_images


def contest(seen: dict[str, list[torch.Tensor]]) -> Contest:
    """Of two sides that note what they were shown."""
    return Contest(
        title="nothing, batch 64",
        batch=64,
        train=open_images(DataOptions(path="photos", size=64)),
        sides={side: lambda batch, side=side: seen[side].append(batch.index) for side in seen},
        scores=lambda side: {"agreement": len(seen[side]) / 12},
        pictures=lambda side: torch.zeros(4, 3, 64, 64),
        reference={"nothing": {"distance": 2.0}},
    )


def test_all_sides_see_the_same_batches_and_each_quarter_is_shown(tmp_path: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {"fastgan": [], "plain loop": []}
    given = contest(seen)
    quarters = []
    for kimg, seconds in photographs.train(given, 0.768):
        quarters.append(kimg)
        found = photographs.case("test", given, kimg, seconds)
    assert quarters == [0.256, 0.512, 0.768]  # of turns of 256 images each
    assert len(seen["fastgan"]) == 12
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    assert found.notes["test, fastgan"].startswith("agreement 100.0%, ")
    assert found.notes["test, nothing"] == "distance 2.00"
    photographs.draw("test", given, tmp_path)
    assert (tmp_path / "photos-test.jpg").exists()


def test_a_contest_takes_the_place_of_its_older_self_only(tmp_path: Path) -> None:
    def result(name: str, seconds: float) -> bench.Result:
        case = bench.Case(f"{name}, 1 kimg", "ours", {"ours": [seconds]}, notes={f"{name}, ours": "good"})
        return bench.Result("photographs", bench.device_info(), 0.0, 0.0, 0.0, (case,))

    for name, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        photographs.add(result(name, seconds), tmp_path)
    (path,) = tmp_path.glob("*/photographs.json")
    kept = {case.name: np.array(case.seconds["ours"]).item() for case in bench.Result.load_file(path).cases}
    assert kept == {"a, 1 kimg": 3.0, "b, 1 kimg": 2.0}
