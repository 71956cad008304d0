"""The layers with our kernels, and with the library's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastgan.kernels._runtime import EXTENSION, choose


@pytest.fixture(params=["native", "library"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    kind: str = request.param
    if kind == "native" and EXTENSION.module is None:
        pytest.skip(f"no native part: {EXTENSION.cpu}")
    monkeypatch.setenv("FASTGAN_KERNELS", "all" if kind == "native" else "library")
    choose.cache_clear()
    yield kind
    choose.cache_clear()


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if EXTENSION.module is None:
        pytest.skip(f"no native part: {EXTENSION.cpu}")
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    choose.cache_clear()
    yield
    choose.cache_clear()
