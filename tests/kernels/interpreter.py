"""Python in a process of its own where Triton's kernels run in its interpreter, so that none need be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def interpret(*arguments: str, timeout: float = 110) -> str:
    """What it prints, after it ended well. arguments: of Python"""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
