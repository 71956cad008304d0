"""The programs under examples/ run as they are and print what they promise."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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


def example(name: str) -> Any:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_ring_table(monkeypatch, capsys):
    ring = example("ring_table")
    on_ring = ring.CENTRES.repeat(10, 1)
    assert ring.cover(on_ring) == (8, 1.0)
    assert ring.cover(torch.cat([on_ring[:1].expand(80, -1), on_ring])) == (8, 1.0)
    assert ring.cover(on_ring[:1].expand(80, -1)) == (1, 1.0)
    table = ring.rows()
    assert len(table) == 2 * len(ring.LOSSES) + 3
    monkeypatch.setattr(ring, "rows", lambda: [row for row in table if row[0] == "relativistic, R1 and R2 0.05"])
    ring.main(80, 1)
    *_, row = capsys.readouterr().out.splitlines()
    modes, near = re.fullmatch(r"\| relativistic, R1 and R2 0.05 \| (\d) \| (\S+) \|", row).groups()
    assert int(modes) >= 4
    assert float(near) > 0.1  # of points at random in the square around the ring 0.01 are


def test_augment_digits(monkeypatch, capsys):
    """All of the program with hardly any training: the real digits alone must still be told apart."""
    augment = example("augment_digits")
    monkeypatch.setattr(augment, "ADDED", (2,))
    augment.main(0.1, 1)
    *_, real, with_gan, with_moved = capsys.readouterr().out.splitlines()
    scores = [float(re.search(r"\| (\S+)% \|", line)[1]) for line in (real, with_gan, with_moved)]
    assert scores[0] > 90
    assert scores[2] > 90
    assert scores[1] < 98
    assert "of the GAN" in with_gan
    assert "moved" in with_moved
