"""Freed memory stays with the process: the second tensor of a size costs no page faults.

Without the setting it depends on where the heap happens to end whether all pages are fresh, or none.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from fastgan.allocator import keep_freed_memory
if not keep_freed_memory():
    sys.exit("not possible")
for _ in range(10):
    torch.ones(4 << 20).add(1), torch.ones(12 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(4 << 20).add(1), torch.ones(12 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_no_page_faults_for_memory_that_was_there_before() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    faults = []
    for _ in range(
        3
    ):  # where the system puts heap and libraries is random: seldom there is no room to grow in one piece
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=clean, check=False)
        assert done.returncode == 0, done.stderr
        faults.append(int(done.stdout))
        if faults[-1] < 5 * 5 * 4096 / 20:
            return
    pytest.fail(
        f"ten tensors of 16 MiB and five of 48 are 102,400 pages of 4 KiB; in three processes {faults} were new"
    )


def test_the_users_own_setting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert keep_freed_memory() is False
