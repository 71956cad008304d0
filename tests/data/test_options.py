"""Options that make no sense are refused by name."""

from __future__ import annotations

import pytest

from fastgan.data import DataOptions
from fastgan.errors import FastganError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 0}, ["data.size", "4 to 4096", "got 0"]),
        ({"size": -64}, ["data.size", "got -64"]),
        ({"channels": 4}, ["data.channels", "1 or 3", "got 4"]),
        ({"crop": "centre"}, ["data.crop", "'centre'", "did you mean 'center'?"]),
        ({"memory_gb": -1.0}, ["data.memory_gb", "got -1.0"]),
        ({"memory_gb": float("nan")}, ["data.memory_gb", "nan"]),
        ({"max_bad": 1.0}, ["data.max_bad", "below 1"]),
        ({"max_bad": -0.1}, ["data.max_bad"]),
        ({"min_side": 0}, ["data.min_side"]),
        ({"max_megapixels": 0.0}, ["data.max_megapixels"]),
        ({"max_megapixels": 1000.0}, ["data.max_megapixels", "178"]),
        ({"workers": -1}, ["data.workers", "got -1"]),
    ],
)
def test_bad_values_are_named(changes: dict, words: list[str]) -> None:
    with pytest.raises(FastganError) as raised:
        DataOptions(**changes)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_threads_follow_workers_or_the_cores() -> None:
    assert DataOptions(workers=3).threads == 3
    assert DataOptions().threads >= 1
