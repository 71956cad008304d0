"""Checkpoints after a kill at any moment, on full, locked and forgetful disks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run.saved import assert_is_step, load_warned, names, save_step

from fastgan.errors import FastganError
from fastgan.run import checkpoint, files
from fastgan.run.checkpoint import load, save

# --------------------------------------------------------------------------------------------- durability


def test_everything_is_on_the_device_before_it_is_named(tmp_path, monkeypatch):
    save_step(tmp_path, 1)
    events: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def spy_fsync(descriptor):
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def spy(kind, do):
        def spied(source, target):
            events.append((kind, os.path.basename(target)))
            do(source, target)

        return spied

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy("rename", rename))
    monkeypatch.setattr(os, "replace", spy("rename", replace))
    save_step(tmp_path, 2, keep=1)
    assert events == [
        ("fsync", "generator.safetensors"),
        ("fsync", "optimizer.safetensors"),
        ("fsync", "state.json"),
        ("fsync", ".tmp-step-2"),
        ("rename", "step-2"),
        ("fsync", tmp_path.name),
        ("fsync", ".latest.json.tmp"),
        ("rename", "latest.json"),
        ("fsync", tmp_path.name),
        ("rename", ".tmp-step-1.removed"),
    ]


KILLED_SAVES = """
import os, pathlib, shutil, signal, sys
import torch
from killed import die_at_change
from run.saved import save_step, tensors_of
from fastgan.run.checkpoint import save

torch.set_num_threads(1)
root, name, keep = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for step in (1, 2):
    save_step(root / "start", step)
stage, status = 0, 1
while status != 0:
    folder = root / f"stage-{stage:02d}"
    shutil.copytree(root / "start", folder)
    child = os.fork()
    if child == 0:
        die_at_change(stage)
        save(folder, name, tensors_of(3), {"step": 3}, keep=keep)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    stage += 1
"""


@pytest.mark.parametrize(("name", "keep"), [("step-3", 1), ("step-2", 3)], ids=["new", "again"])
def test_kill_at_every_stage_of_a_save_leaves_a_whole_checkpoint(tmp_path, name, keep):
    """Each change to the file system (open, fsync, rename, removal) is in turn where the kill comes."""
    roots = Path(checkpoint.__file__).parents[2], Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, tmp_path, name, str(keep)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots)), "OMP_NUM_THREADS": "1"},
    )
    stages = sorted(tmp_path.glob("stage-*"))
    assert len(stages) > 15
    steps = []
    for folder in stages:
        found, warnings = load_warned(folder)
        step = found.state["step"]
        assert_is_step(found, step)
        assert step in (2, 3)
        if warnings:  # only where the latest was being replaced by another of the same name
            assert name == "step-2"
        steps.append(step)
        for path in folder.glob("step-*"):
            load(path)  # nothing that bears a name is half written or half removed
        save_step(folder, 4, keep=1)  # the next save succeeds and clears everything that the dead one left
        assert names(folder) == {"step-4", "latest.json"}
    assert steps == sorted(steps)
    assert steps[0] == 2
    assert steps[-1] == 3
    assert steps.count(3) >= 3  # among them: killed while removing older ones


# ------------------------------------------------------------------------------------- full or locked disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs privileges")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk):
    folder = small_disk / "checkpoints"
    save_step(folder, 1)
    big = {"network": {"weight": torch.randn(200_000)}}
    with pytest.raises(FastganError) as caught:
        save(folder, "step-2", big, {}, keep=1)
    assert "\n" not in str(caught.value)
    assert "no space left on device; the previous checkpoint step-1 is intact" in str(caught.value)
    assert names(folder) == {"step-1", "latest.json"}
    assert_is_step(load_warned(folder)[0], 1)
    save_step(folder, 2, keep=1)
    assert names(folder) == {"step-2", "latest.json"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", range(3))
def test_an_error_of_the_system_is_one_line_and_loses_nothing(tmp_path, monkeypatch, code, when):
    save_step(tmp_path, 1)
    calls = 0

    def failing(path, *parts):
        nonlocal calls
        calls += 1
        data = b"".join(parts)
        if calls > when:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(code, os.strerror(code), str(path))
        files.write_durable(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_durable", failing)
        with pytest.raises(FastganError) as caught:
            save_step(tmp_path, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert os.strerror(code)[1:] in message
    assert "step-1 is intact" in message
    assert names(tmp_path) == {"step-1", "latest.json"}
    assert_is_step(load_warned(tmp_path)[0], 1)


def test_the_first_save_of_all_has_no_earlier_one_to_name(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FastganError, match=r"cannot save checkpoint step-1 .* no earlier checkpoint"):
        save_step(tmp_path / "file" / "checkpoints", 1)


def test_a_device_that_forgets_is_found_before_anything_is_deleted(tmp_path, monkeypatch):
    save_step(tmp_path, 1)

    def forgetful(path, *parts):
        data = b"".join(parts)
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        files.write_durable(path, flipped if path.suffix == ".safetensors" else data)

    monkeypatch.setattr(checkpoint, "write_durable", forgetful)
    with pytest.raises(FastganError, match="right after it was written"):
        save_step(tmp_path, 2, keep=1)
    assert_is_step(load_warned(tmp_path)[0], 1)


def test_an_old_one_that_cannot_be_removed_does_not_stop_the_run(tmp_path, monkeypatch):
    save_step(tmp_path, 1)

    def refusing(path, **_):
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", refusing)
        with pytest.warns(UserWarning, match="cannot remove .*step-1: permission denied"):
            save_step(tmp_path, 2, keep=1)
    assert_is_step(load_warned(tmp_path)[0], 2)
    save_step(tmp_path, 3, keep=1)
    assert names(tmp_path) == {"step-3", "latest.json"}
