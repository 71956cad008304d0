"""Shared by the tests of data: a folder of small pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.pictures import files, write_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", files())
