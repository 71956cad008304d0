"""Shared by the tests of the ops: which implementation runs, and where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastgan.kernels._runtime import EXTENSION, choose
from fastgan.kernels._runtime.choice import GPU_KERNELS, NO_GPU_KERNEL


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    kind: str = request.param
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


@pytest.fixture(params=["native", "library"])
def implementation(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Ours and PyTorch's, in turn, on `device`. The op is the one with whose name the file's begins."""
    kind: str = request.param
    name = request.path.stem.removeprefix("test_")
    op = max((op for op in (*GPU_KERNELS, *NO_GPU_KERNEL) if name.startswith(op)), key=len)
    if kind == "native" and device.type == "cuda" and GPU_KERNELS[op] == "Triton":
        pytest.importorskip("triton")
    elif kind == "native" and (EXTENSION.module is None or (device.type == "cuda" and not EXTENSION.has_cuda)):
        pytest.skip(f"no native part: {EXTENSION.cpu if device.type == 'cpu' else EXTENSION.cuda}")
    monkeypatch.setenv("FASTGAN_KERNELS", "all" if kind == "native" else "library")
    choose.cache_clear()
    assert choose(op, device).native == (kind == "native")
    yield kind
    choose.cache_clear()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is NaN, or 255 in masks, so that what is not written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # only for what it does to new memory
    assert torch.empty(1).isnan()
    assert torch.empty(1).new_empty(1, dtype=torch.uint8) == 255
    yield
    torch.use_deterministic_algorithms(False)
