"""Shared by all tests: one thread per test process, GPU tests only where there is a GPU, long ones where asked for."""

from __future__ import annotations

import gc
import os

import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Modules and tests stay anyway: the garbage collector need not look at them again (a tenth of all the time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_gpu, everything = torch.cuda.is_available(), os.environ.get("FASTGAN_TESTS") == "all"
    for item in items:
        if "gpu" in item.keywords and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "long" in item.keywords and not everything:
            item.add_marker(pytest.mark.skip(reason="long; FASTGAN_TESTS=all runs it"))
