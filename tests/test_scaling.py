"""The scaling table against what ranks send in a step, and the script for SLURM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_presets import batch_of, smallest, step_of
from torch import Tensor

from fastgan.dist import Ranks

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
scaling = pytest.importorskip("scaling", reason="tools/ is not there")


@pytest.mark.parametrize("preset", ["digits", "dcgan-64", "sngan-32"])
def test_what_a_step_sends(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[torch.dtype, int]] = []

    def reduce(self: Ranks, tensor: Tensor, operation: Any) -> Tensor:
        sent.append((tensor.dtype, tensor.numel() * tensor.element_size()))
        return tensor

    monkeypatch.setattr(Ranks, "_reduce", reduce)
    config = smallest(preset, batch=4)
    _, step = step_of(config, ranks=Ranks(0, 2))
    part = [batch_of(config, n, ranks=Ranks(0, 2)) for n in range(2 * step.batches)]
    step(iter(part[: step.batches]).__next__)  # with whatever is agreed on once
    sent.clear()
    step(iter(part[step.batches :]).__next__)
    expected = scaling.traffic(config)
    flat = [size for dtype, size in sent if dtype == torch.float32]
    numbers = scaling.ALIGNMENT * scaling.WIDTH  # for the log
    assert [size - numbers for size in flat] == list(expected.gradients)
    assert sum(dtype == torch.float64 for dtype, _ in sent) == expected.statistics


def test_all_reduces_by_hand() -> None:
    c = scaling.Constants(inside=100.0, between=10.0, per_machine=4, latency=1.0)
    assert scaling.all_reduce_seconds(1000, 1, c) == 0
    assert scaling.all_reduce_seconds(1000, 2, c) == 10 + 2
    assert scaling.all_reduce_seconds(1000, 4, c) == 15 + 4
    assert scaling.all_reduce_seconds(1000, 8, c) == 15 + 100 + 6


def test_the_table() -> None:
    config = smallest("dcgan-64", batch=8)
    c = scaling.Constants(features=100.0)
    rows = [scaling.row(config, n, 8 // n, c) for n in (1, 2, 8)]
    assert rows[0].gradients == rows[0].statistics == 0
    gathered = 50_000 * 2048 * 4 / 2 / c.between
    alone = rows[0].evaluation - c.metric
    assert rows[1].evaluation == pytest.approx(alone / 2 + gathered + c.metric)
    assert alone > 50_000 / 100  # and what drawing takes
    assert rows[2].compute < rows[1].compute < rows[0].compute
    assert rows[2].gradients > rows[1].gradients
    lines = scaling.table(config, c)
    assert sum(line.startswith("| 8 |") for line in lines) == 2
    assert any(line.startswith("| 1024 | 8 |") for line in lines)
    assert not any(line.startswith("| 16 | 0") for line in lines)
    assert lines[3].count("|") == lines[5].count("|")


def test_the_slurm_script_reads_its_flags(tmp_path: Path) -> None:
    """Under `srun` and `scontrol` that only say what they were asked."""
    script = ROOT / "examples" / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    (tmp_path / "srun").write_text('#!/bin/bash\necho "srun $*"\nexit $STATUS\n')
    (tmp_path / "scontrol").write_text('#!/bin/bash\n[ "$1" = show ] && echo node7 || echo "scontrol $*"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "my run"
    out.mkdir()

    def run(status: int, *flags: str) -> tuple[int, str]:
        environment = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "STATUS": str(status),
            "SLURM_JOB_ID": "1234567",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[7-8]",
        }
        done = subprocess.run(
            ["bash", str(script), *flags], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    status, said = run(0, "--data", "x", "--out", str(out))
    assert status == 0
    assert f"--rdzv-endpoint node7:34567 --max-restarts 3 -m fastgan train --data x --out {out}" in said
    assert run(1, f"--out={out}")[0] == 1
    assert "scontrol" not in run(1, f"--out={out}")[1]
    (out / "resumable").write_text("stopped by SIGTERM\n")
    status, said = run(1, f"--out={out}")
    assert status == 0
    assert said.endswith("stopped by SIGTERM: back into the queue\nscontrol requeue 1234567\n")
    assert run(0) == (2, "give --out DIR, on storage that all machines see\n")


def test_bytes_follow_from_the_shapes() -> None:
    lines = scaling.bytes_table(["digits", "wgan-gp-64"])
    assert lines[2:] == [
        "| `digits` | 64 | 2.11 + 1.39 | 3.50 MB | 12 | 0.07 MB |",
        "| `wgan-gp-64` | 64 | 5 x 11.06 + 15.22 | 70.52 MB | 44 | 3.93 MB |",
    ]
