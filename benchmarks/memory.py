"""Peak memory of one candidate of bench_step, in a process of its own.

    python -m benchmarks.memory PRESET CANDIDATE BATCH DEVICE

prints the bytes that a running training takes: networks, optimisers and the peak within steps, above what the process
held before; on a CPU of the process, on a GPU of tensors. What comes once is left out for all candidates alike: each
has trained networks of a few weights before (imports and compilers: for the sweep Dynamo, 50 MiB), and the first cycle
of steps is not looked at (in it a plan is traced and checked: for `digits` a peak of 46 MiB for a moment).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch._dynamo

from benchmarks import steps
from fastgan import bench


def main(preset: str, candidate: str, batch: str, device: str) -> None:
    config = steps.config_of(preset, int(batch), device)
    for _ in range(2):
        steps.timed(candidate, steps.tiny(config), device)()
    before = restart_peak(device)
    step = steps.timed(candidate, config, device)
    step()
    restart_peak(device)
    for _ in range(3):
        step()
    print(bench.peak_memory(device) - before)


def restart_peak(device: str) -> int:
    """Let the peak start anew at what is held now, which is returned, in bytes (Linux, CUDA)."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return bench.peak_memory(device)


def rise(step: Callable[[], object], device: str) -> int:
    """Bytes by which memory rises within a step that has run before, above what is there between steps (Linux, CUDA).

    On a CPU run it with MALLOC_MMAP_THRESHOLD_ set (`in_new_process` does), so that what is freed is given back.
    """
    for _ in range(2):
        step()
    before = restart_peak(device)
    step()
    return bench.peak_memory(device) - before


def measured(preset: str, candidate: str, batch: int, device: str, runs: int) -> int:
    """The bytes that a running training takes, as a process of its own prints them; on a CPU the median of `runs`."""
    return in_new_process("benchmarks.memory", [preset, candidate, str(batch)], device, runs)


def in_new_process(module: str, arguments: list[str], device: str, runs_on_cpu: int = 3) -> int:
    """What `python -m module *arguments device` prints; on a CPU, where it varies by percents, median of some runs."""
    command = [sys.executable, "-m", module, *arguments, device]
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", **os.environ}
    runs = [
        int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)
        for _ in range(1 if device == "cuda" else runs_on_cpu)
    ]
    return sorted(runs)[len(runs) // 2]


if __name__ == "__main__":
    main(*sys.argv[1:])
