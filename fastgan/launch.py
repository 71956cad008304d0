"""`fastgan train --gpus N`: as many processes on this machine, each told which rank it is, and one exit status of all.

torchrun does the same for several machines, but ends what is saving 30 seconds after a signal, starts status 3 (stopped
early, resumable) again or reports it as 1, and prints a page about it. Here the ranks' own status comes back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

LAUNCHED = "FASTGAN_LAUNCHED"  # in the environment of the processes
GRACE_SECONDS = 60.0
"""For how long the others may go on after one rank has failed: they notice, and end by themselves."""
DONE, BUG, MENDABLE, RESUMABLE = 0, 1, 2, 3


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that prints, as far as the environment says: before it is joined to others."""
    return environment.get("RANK", "0") == "0"


def launch(world: int, command: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `command` in `world` processes that are each other's ranks; returns their exit status.

    A signal to this process goes to each of them, once; a second one kills them. say: gets a line about each that died
    """
    port = _free_port()
    processes: list[subprocess.Popen[bytes]] = []
    with _passing_on(processes):
        for rank in range(world):
            environment = os.environ | _environment(rank, world, port)
            # In a session of its own, so that the terminal's Ctrl-C comes to this process only.
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
        _wait(processes)
    for rank, process in enumerate(processes):
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            say(f"rank {rank} was killed by {name}; the same command goes on from the last checkpoint")
    return status_of([process.returncode for process in processes])


def status_of(codes: Sequence[int]) -> int:
    """The exit status of a command whose processes ended with `codes`; below 0: killed by a signal."""
    failed = {code for code in codes if code != DONE}
    if not failed:
        return DONE
    if MENDABLE in failed:
        return MENDABLE
    return RESUMABLE if failed == {RESUMABLE} else BUG


def end_with_parent() -> None:
    """Have this process get SIGTERM when the one that launched it dies without a word (Linux)."""
    if LAUNCHED in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.environ[LAUNCHED] != str(os.getppid()):
            os.kill(os.getpid(), signal.SIGTERM)


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would set. Each rank gets its share of the cores."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // world))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
        LAUNCHED: str(os.getpid()),
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def _passing_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Signals go to all processes, which are killed by a second one and whatever else ends this."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number if len(received) == 1 else signal.SIGKILL)

    wanted = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, previous in before.items():
            signal.signal(number, previous)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; those that go on GRACE_SECONDS after one has failed are ended."""
    deadline: float | None = None
    while None in (codes := [process.poll() for process in processes]):
        if deadline is None and any(code not in (None, DONE) for code in codes):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.1)
