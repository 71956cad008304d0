"""FASTGAN_TESTS=all runs the long tests of this folder too."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep.compare import EVERYTHING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if EVERYTHING:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long; FASTGAN_TESTS=all runs it"))
