"""Shared by the tests of the ops: which implementation runs, and where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastgan.kernels._runtime import EXTENSION, choose
from fastgan.kernels._runtime.choice import GPU_KERNELS


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    kind: str = request.param
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


@pytest.fixture(params=["native", "library"])
def implementation(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Ours and PyTorch's, in turn, on `device`. The op is the one that the file is called after."""
    kind: str = request.param
    op = request.path.stem.removeprefix("test_")
    if kind == "native" and device.type == "cuda" and GPU_KERNELS[op] == "Triton":
        pytest.importorskip("triton")
    elif kind == "native" and (EXTENSION.module is None or (device.type == "cuda" and not EXTENSION.has_cuda)):
        pytest.skip(f"no native part: {EXTENSION.cpu if device.type == 'cpu' else EXTENSION.cuda}")
    monkeypatch.setenv("FASTGAN_KERNELS", "all" if kind == "native" else "library")
    choose.cache_clear()
    assert choose(op, device).native == (kind == "native")
    yield kind
    choose.cache_clear()
