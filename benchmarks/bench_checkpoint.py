"""What a checkpoint of R3GAN-256 costs the training loop: written behind it, and as the loop would write it itself.

The loop pays for a copy of all tensors into host memory; writing, reading back and removing the old one go on beside
it.
"""

from __future__ import annotations

import time

import pytest
import torch

from fastgan import bench
from fastgan.assemble import build_state
from fastgan.options import to_mapping
from fastgan.presets import PRESETS
from fastgan.run import checkpoint
from fastgan.run.behind import Writer

LIMIT_SECONDS = 0.5
ROUNDS = 4  # the first one is not counted: it gets the memory from the system


@pytest.mark.timeout(900)
def test_what_the_loop_pays(device, ratio, tmp_path):
    state = build_state(PRESETS["r3gan-256"], torch.device(device))
    tensors, head = state.tensors(), {"config": to_mapping(PRESETS["r3gan-256"]), "counters": state.counters()}
    size = sum(t.nbytes for group in tensors.values() for t in group.values())
    writer = Writer(tmp_path / "behind", keep=1, say=lambda line: None)

    def behind():
        writer.save("step-1", tensors, head)
        if device == "cuda":  # the copies are behind the last step's work and before the next one's
            torch.cuda.current_stream().synchronize()

    def in_loop():
        checkpoint.save(tmp_path / "loop", "step-1", tensors, head, keep=1)

    seconds = {"written behind": [], "written by the loop": []}
    for _ in range(ROUNDS):
        for name, save in zip(seconds, (behind, in_loop), strict=True):
            begin = time.perf_counter()
            save()
            seconds[name].append(time.perf_counter() - begin)
            writer.wait()
    saved = checkpoint.load(tmp_path / "behind" / "step-1")
    for file, group in tensors.items():
        for name, tensor in group.items():
            assert torch.equal(tensor.cpu(), saved.tensors[file][name]), f"{file}: {name} is not what was saved"
    counted = {name: [float(f"{s:.5g}") for s in times[1:]] for name, times in seconds.items()}
    case = bench.Case(f"R3GAN-256, {size / 1e9:.2f} GB", "written behind", counted, size, 0, {}, {})
    ratio.keep("checkpoint", case)
    assert case.median("written behind") < LIMIT_SECONDS
