"""`fastgan train --gpus N` and `--ranks N`: processes, signals, one exit status; and what torchrun does with ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ranks import free_port
from test_train import ROOT, TINY, same

from fastgan import cli, launch
from fastgan.cli import actions
from fastgan.run import folder

SLEEP = "import time; time.sleep(100)"


def program(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys; rank = int(os.environ['RANK'])\n{text}"]


def test_one_status_of_all() -> None:
    for codes, status in (
        ((0, 0), 0),
        ((3, 3), 3),
        ((3, 0), 3),
        ((3, 2), 2),
        ((1, 3), 1),
        ((0, -9), 1),
        ((-15, 3), 1),
        ((2, 1), 2),
    ):
        assert launch.status_of(codes) == status, codes


def test_each_process_is_told_its_rank(tmp_path: Path) -> None:
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR"
    text = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[n] for n in '{names}'.split())); sys.exit(3)"
    assert launch.launch(2, program(text), pytest.fail) == 3
    assert [(tmp_path / name).read_text() for name in "01"] == ["0 2 0 2 127.0.0.1", "1 2 1 2 127.0.0.1"]


def test_a_dead_rank_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    lines: list[str] = []
    began = time.monotonic()
    status = launch.launch(2, program(f"if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n{SLEEP}"), lines.append)
    assert status == 1
    assert time.monotonic() - began < 20
    assert "rank 1 was killed by SIGKILL; the same command goes on from the last checkpoint" in lines


def test_signals_reach_all_ranks_once(tmp_path: Path) -> None:
    text = f"""
signal.signal(signal.SIGTERM, lambda *_: (open(f'{tmp_path}/got-{{rank}}', 'a').write('x'), sys.exit(3)))
open(f'{tmp_path}/ready-{{rank}}', 'w')
{SLEEP}"""

    def interrupt() -> None:
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert launch.launch(2, program(text), pytest.fail) == 3
    thread.join()
    assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == ["x", "x"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_cannot_be_launched_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[object] = []
    monkeypatch.setattr(actions, "launch", lambda world, command, say: started.append((world, command)) or 3)
    monkeypatch.setattr(actions, "gpus_here", lambda: 2)
    digits = ["train", "--preset", "digits", "--out", str(tmp_path / "x")]
    for flags, said in (
        (["--gpus", "3"], "--gpus 3: there are 2 GPUs here"),
        (["--gpus", "2", "--device", "cpu"], "and --device is cpu"),
        (["--gpus", "0"], "--gpus 0: give one of --gpus and --ranks, with a number of 1 or more"),
        (["--gpus", "2", "--ranks", "2"], "give one of --gpus and --ranks"),
        (["--ranks", "3"], "--ranks 3: there are 2 GPUs here; use fewer, or --device cpu"),
        (["--ranks", "3", "--device", "cpu"], "--ranks 3: a batch of 64 images cannot be shared out"),
    ):
        assert cli.main([*digits, *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
    assert not started
    assert cli.main([*digits, "--gpus", "2"]) == 3
    assert cli.main([*digits, "--ranks", "4", "--device", "cpu"]) == 3
    assert started == [
        (2, [sys.executable, "-m", "fastgan", *digits, "--gpus", "2"]),
        (4, [sys.executable, "-m", "fastgan", *digits, "--ranks", "4", "--device", "cpu"]),
    ]
    monkeypatch.setenv("RANK", "0")
    assert cli.main([*digits, "--gpus", "2"]) == 2
    assert "torchrun has started the ranks already" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# ---- whole runs, in processes of their own

LONG = ("kimg=0.96", "output.checkpoint_kimg=0.16")  # 60 steps


def train(out: Path, *flags: str) -> list[str]:
    sets = [flag for s in (*TINY, *LONG) for flag in ("--set", s)]
    return ["-m", "fastgan", "train", "--preset", "dcgan-64", "--out", str(out), *sets, *flags]


def torchrun(*flags: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", *flags]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], text=True, cwd=ROOT, env=environment, **pipes)


def appears(path: Path, pattern: str, process: subprocess.Popen[str] | None = None, seconds: float = 400) -> None:
    """Wait for a file that `process` is going to write."""
    began = time.monotonic()
    while not list(path.glob(pattern)):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - began < seconds, f"{pattern} did not appear"
        time.sleep(0.05)


def finished(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, error = process.communicate(timeout=900)
    assert process.returncode == status, f"{process.returncode}\n{out}\n{error}"
    return out, error


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process number of those that `process` has started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"\nPPid:\t{process.pid}\n" in (path / "status").read_text():
                pairs = (entry.partition("=") for entry in (path / "environ").read_bytes().decode().split("\0"))
                found |= {int(value): int(path.name) for name, _, value in pairs if name == "RANK"}
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    lines, error = finished(start(*train(out, "--ranks", "2")))
    assert lines.count("try next:") == 1, "only the first rank prints"
    assert not error
    return out


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_launched_run_is_stopped_and_goes_on(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    process = start(*train(out, "--ranks", "2"))
    appears(out / "checkpoints", "step-*", process)
    process.terminate()
    lines, _ = finished(process, 3)
    assert lines.count("stopped by SIGTERM") == 1
    assert (out / folder.RESUMABLE).exists()
    finished(start(*train(out, "--ranks", "2")))
    assert same(out, whole), "bit by bit on the same number of ranks"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_all_with_one_line_each(tmp_path: Path, whole: Path, killed: int) -> None:
    out = tmp_path / "run"
    process = start(*train(out, "--ranks", "2"))
    appears(out / "checkpoints", "step-*", process)
    os.kill(ranks_of(process)[killed], signal.SIGKILL)
    began = time.monotonic()
    _, error = finished(process, 1)
    assert time.monotonic() - began < launch.GRACE_SECONDS + 60
    assert "Traceback" not in error
    lost, dead = error.splitlines()
    assert f"rank {1 - killed}: another rank is gone or did not answer" in lost
    assert f"rank {killed} was killed by SIGKILL" in dead
    finished(start(*train(out, "--ranks", "2")))
    assert same(out, whole)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ranks_that_lost_their_launcher_save_and_end(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(*train(out, "--ranks", "2"))
    appears(out / "checkpoints", "step-*", process)
    process.kill()
    appears(out, folder.RESUMABLE)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_torchrun_restarts_a_killed_rank_from_the_last_checkpoint(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    process = start(*torchrun("--standalone", "--max-restarts", "1"), *train(out))
    appears(out / "checkpoints", "step-*", process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    finished(process)
    assert "resumed from" in (out / "log.txt").read_text()
    assert same(out, whole)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_torchrun_reports_status_3_as_1_and_the_folder_says_more(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(*torchrun("--standalone"), *train(out))
    appears(out / "checkpoints", "step-*", process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    _, error = finished(process, 1)
    assert "exitcode  : 3" in error
    assert (out / folder.RESUMABLE).exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_machines_meet_by_c10d(tmp_path: Path) -> None:
    """Two of torchrun's agents on loopback, one rank each: what two machines would run."""
    out = tmp_path / "run"
    flags = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "t"]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--local-addr", "127.0.0.1", *flags, *train(out)]
    agents = [start(*command) for _ in range(2)]
    lines = [finished(agent)[0] for agent in agents]
    assert sum("try next:" in text for text in lines) == 1
    assert "with 2 ranks" in (out / "log.txt").read_text()
    assert folder.load(out, print).state["counters"] == {"step": 60, "samples": 960}
