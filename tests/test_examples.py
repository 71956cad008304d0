"""The programs under examples/ run as they are and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not there")


def output(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def test_gradient_penalty():
    *steps, last = output("gradient_penalty.py", "200").splitlines()
    assert len(steps) == 10
    assert all(line.endswith("sweep") for line in steps)
    losses = [float(number) for line in steps for number in re.findall(r"critic (\S+)  generator (\S+)", line)[0]]
    assert all(0.3 < loss < 1.5 for loss in losses)
    assert re.fullmatch(r"\d+% of the samples are at one of the Gaussians, \d of 8 are reached", last)


def test_fuse_a_generator():
    chain, difference, times = output("fuse_a_generator.py", "4", "4").splitlines()
    assert chain.endswith("one chain of 5 blocks")
    assert float(difference.split()[-1]) < 1e-5
    assert re.fullmatch(r"\S+ ms as written, \S+ ms fused, on \w+", times)
