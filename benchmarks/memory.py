"""Peak memory of one candidate of bench_step, in a process of its own.

    python -m benchmarks.memory PRESET CANDIDATE BATCH DEVICE

prints the bytes that building the networks and training steps took: on a CPU how much the peak of the
process rose, on a GPU the most that tensors held.
"""

from __future__ import annotations

import subprocess
import sys

import torch._dynamo  # noqa: F401  (torch.optim loads it at its first use: code that is not the step's)

from benchmarks import steps
from fastgan import bench


def main(preset: str, candidate: str, batch: str, device: str) -> None:
    config = steps.config_of(preset, int(batch))
    before = bench.peak_memory(device)
    step = steps.timed(candidate, config, device)
    for _ in range(3):
        step()
    print(bench.peak_memory(device) - before)


def measured(preset: str, candidate: str, batch: int, device: str) -> int:
    """Peak bytes of `candidate`, in a new process; on a CPU, where it varies by percents, median of three."""
    command = [sys.executable, "-m", "benchmarks.memory", preset, candidate, str(batch), device]
    runs = [
        int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for _ in range(1 if device == "cuda" else 3)
    ]
    return sorted(runs)[len(runs) // 2]


if __name__ == "__main__":
    main(*sys.argv[1:])
