"""Killed at random moments and in every stage of a checkpoint, and the same bits in the end: the short soak."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def soak(what: str, kills: int) -> str:
    done = subprocess.run(
        [sys.executable, HERE / "soak.py", "--what", what, "--kills", str(kills)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_training_that_is_killed_ends_with_the_same_weights() -> None:
    assert "the same bits" in soak("train", 3)


@pytest.mark.timeout(300)
def test_packing_that_is_killed_ends_with_the_same_pack() -> None:
    assert "the same bytes" in soak("pack", 4)
