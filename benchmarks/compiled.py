"""A loop with torch.compile in a process of its own, which can be given up.

Inductor takes minutes for whole critic steps, and cannot be interrupted. Here it has a process and a time limit:
`Compiled(...)` starts it, `ready(limit)` waits until it has compiled, and each call does one lazy cycle there and waits
for that.

    python -m benchmarks.compiled PRESET BATCH CANDIDATE DEVICE

is that process; by hand it fills Inductor's cache on the disk (close its input to end it).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from fastgan import bench


class Compiled:
    """One candidate of bench_step in its process. Close it."""

    def __init__(self, preset: str, batch: int, candidate: str, device: str) -> None:
        command = [sys.executable, "-m", "benchmarks.compiled", preset, str(batch), candidate, device]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # its compilers end with it
        )

    def _read(self, limit: float) -> list[str]:
        """The next line in words; TimeoutError after `limit` seconds."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.close()

        timer = threading.Timer(limit, give_up)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        if late.is_set():
            raise TimeoutError(f"did not compile in {limit:.0f} s")
        kind, _, rest = line.strip().partition(" ")
        if kind not in ("ready", "done"):
            self.close()
            raise RuntimeError(rest or f"its process ended with status {self.process.wait()}")
        return rest.split()

    def ready(self, limit: float) -> float:
        """Seconds of a cycle once it is compiled. TimeoutError, or RuntimeError with the compiler's reason."""
        return float(self._read(limit)[0])

    def __call__(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self._read(600)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def closing_all() -> Iterator[list[Compiled]]:
    """A list whose members are closed at the end."""
    made: list[Compiled] = []
    try:
        yield made
    finally:
        for each in made:
            each.close()


def main(preset: str, batch: str, candidate: str, device: str) -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what compilers print
    from benchmarks import steps

    try:
        began = time.perf_counter()
        step = steps.timed(candidate, steps.config_of(preset, int(batch), device), device)
        step()
        compiling = time.perf_counter() - began
        seconds = min(bench.measure({"": step}, device=device, rounds=3, min_time=0.0, warmup=1)[""])
    except Exception as error:  # whatever the compiler raises: the reason is part of the result
        lines = str(error).strip().splitlines()
        said.write(f"failed {type(error).__name__}: {lines[0][:100] if lines else ''}\n")
        return
    said.write(f"ready {seconds:.6g} {compiling:.6g}\n")
    for _ in sys.stdin:
        step()
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        said.write("done\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
