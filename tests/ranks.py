"""Functions run by several gloo ranks on this machine: for tests of "two ranks are one".

    results = in_ranks(2, "test_dist:work", tmp_path, total=3)

runs `work(ranks, total=3)` of tests/test_dist.py in two processes, each joined to the other, and returns what each of
them returned, a dict of tensors, by way of safetensors files. Where one raises, the test fails with its traceback.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgan.dist import joined

# Forked from a server that has imported PyTorch once, since that takes longer than most of what is run.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "fastgan.presets", "safetensors.torch"])


def in_ranks(
    world: int, function: str, folder: Path, /, *, seconds: float = 120.0, **arguments: Any
) -> list[dict[str, Tensor]]:
    """What `function` ("module:name", called with the fastgan.dist.Ranks and `arguments`) returns, by rank.

    folder: an empty one, for the files;  arguments: whatever can be pickled
    """
    port = free_port()
    processes = [
        _SERVER.Process(target=_work, args=(rank, world, port, function, folder, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    said = [(folder / f"{rank}.txt").read_text() for rank in range(world) if (folder / f"{rank}.txt").exists()]
    assert not said, "\n".join(said)
    assert not late, f"{len(late)} of {world} ranks took more than {seconds} s"
    assert [process.exitcode for process in processes] == [0] * world
    return [load_file(folder / f"{rank}.safetensors") for rank in range(world)]


def _work(rank: int, world: int, port: int, function: str, folder: Path, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= environment_of(rank, world, port)
    module, name = function.split(":")
    try:
        with joined("cpu") as ranks:
            result = getattr(importlib.import_module(module), name)(ranks, **arguments)
        save_file({key: t.detach().contiguous().clone() for key, t in result.items()}, folder / f"{rank}.safetensors")
    except BaseException:
        (folder / f"{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise


def environment_of(rank: int, world: int, port: int) -> dict[str, str]:
    """As torchrun sets it, on one machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
