"""Freed memory stays with the process: the second tensor of a size costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from fastgan.allocator import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("not possible")
for _ in range(10):
    torch.ones(4 << 20).add(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(4 << 20).add(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    import os

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, env=clean | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_no_page_faults_for_memory_that_was_there_before() -> None:
    fresh = faults("as it comes")
    assert fresh > 5 * 4096, "ten tensors of 16 MiB in fresh pages of 4 KiB, or fewer larger ones"
    assert faults("kept") < fresh / 20


def test_the_users_own_setting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert keep_freed_memory() is False
