"""Checkpoints behind the loop, their copies elsewhere, those of the past; one run per folder; signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.options import defaults, to_mapping
from fastgan.presets import PRESETS
from fastgan.run import behind, checkpoint, folder, migrate
from fastgan.run.behind import Writer
from fastgan.run.files import write_durable
from fastgan.run.mirror import Mirror
from fastgan.run.signals import StopSignals
from fastgan.run.snapshot import NAMES, Snapshot, file_parts

ROOT = Path(__file__).parents[2]
Groups = dict[str, dict[str, Tensor]]


def groups(value: float) -> Groups:
    return {
        "net": {"a": torch.full((5, 3), value), "b": torch.full((), value)},
        "moments": {"m": torch.ones(7) * value},
    }


def value_of(found: checkpoint.Checkpoint | None) -> float:
    assert found is not None
    values = {float(v) for group in found.tensors.values() for t in group.values() for v in t.flatten()}
    assert len(values) == 1, "parts of two checkpoints"
    return values.pop()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, no file of a checkpoint is begun."""
    event = threading.Event()

    def waiting(path: Path, *parts: Any) -> None:
        assert event.wait(30)
        write_durable(path, *parts)

    monkeypatch.setattr(checkpoint, "write_durable", waiting)
    return event


# ---- the thread


def test_what_is_written_is_the_state_when_it_was_asked_for(tmp_path: Path, gate: threading.Event) -> None:
    said: list[str] = []
    tensors = groups(1.0)
    with Writer(tmp_path, keep=2, say=said.append) as writer:
        writer.save("step-1", tensors, {"step": 1})
        for group in tensors.values():
            for tensor in group.values():
                tensor.fill_(2.0)
        writer.poll()
        assert said == []
        gate.set()
        writer.save("step-2", tensors, {"step": 2})
    assert value_of(checkpoint.load(tmp_path / "step-1")) == 1.0
    assert value_of(checkpoint.load(tmp_path / "step-2")) == 2.0
    assert said == [f"saved {tmp_path / 'step-1'}", f"saved {tmp_path / 'step-2'}"]


def test_there_are_never_two_at_once_and_memory_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, addresses = 0, 0, set()
    save = checkpoint.save

    def slow(folder: Path, name: str, tensors: Groups, *args: Any, **kwargs: Any) -> Path:
        nonlocal running, most
        running += 1
        most = max(most, running)
        addresses.add(tensors["net"]["a"].data_ptr())
        time.sleep(0.02)
        path = save(folder, name, tensors, *args, **kwargs)
        running -= 1
        return path

    monkeypatch.setattr(behind.checkpoint, "save", slow)
    with Writer(tmp_path, keep=1, say=lambda line: None) as writer:
        for step in range(5):
            writer.save(f"step-{step}", groups(step), {})
    assert most == 1
    assert len(addresses) == 1
    assert value_of(checkpoint.load_latest(tmp_path, print)) == 4.0


@pytest.mark.parametrize("how", ["poll", "wait", "save", "leave"])
def test_an_error_of_the_thread_is_raised_in_the_loop(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *parts: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path, keep=1, say=lambda line: None)
    writer.save("step-1", groups(1.0), {})
    writer.wait()
    monkeypatch.setattr(checkpoint, "write_durable", full)
    writer.save("step-2", groups(2.0), {})
    ways: dict[str, Callable[[], object]] = {
        "poll": lambda: [writer.poll() or time.sleep(0.01) for _ in range(1000)],
        "wait": writer.wait,
        "save": lambda: writer.save("step-3", groups(3.0), {}),
        "leave": lambda: writer.__exit__(None, None, None),
    }
    with pytest.raises(FastganError, match=r"no space left on device; the previous checkpoint step-1 is intact"):
        ways[how]()
    writer.wait()  # once
    assert value_of(checkpoint.load_latest(tmp_path, print)) == 1.0


def test_leaving_with_an_error_waits_and_says_what_else_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run(step: int) -> None:
        with Writer(tmp_path, keep=1, say=said.append) as writer:
            writer.save(f"step-{step}", groups(step), {})
            raise FastganError("an image")

    with pytest.raises(FastganError, match="an image"):
        run(1)
    assert value_of(checkpoint.load_latest(tmp_path, print)) == 1.0
    monkeypatch.setattr(checkpoint, "write_durable", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(FastganError, match="an image"):
        run(2)
    assert "step-2" in said[-1]
    assert "full" in said[-1]


def test_files_are_those_of_safetensors() -> None:
    tensors = {str(dtype): torch.arange(7).to(torch.float32).to(dtype) for dtype in NAMES if "uint" not in str(dtype)}
    tensors |= {"u8": torch.arange(5, dtype=torch.uint8), "empty": torch.empty(0, 3), "0-dim": torch.tensor(2.5)}
    data = b"".join(file_parts(tensors))
    back = safetensors.torch.load(data)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert bytes(back[name].reshape(-1).view(torch.uint8)) == bytes(tensor.reshape(-1).view(torch.uint8))
    again = safetensors.torch.load(safetensors.torch.save(tensors))
    assert again.keys() == back.keys()


def test_a_snapshot_is_dense_and_apart() -> None:
    whole = torch.arange(24.0).reshape(2, 3, 2, 2)
    given = {"x": {"last": whole.contiguous(memory_format=torch.channels_last), "t": whole[0, 0].T, "same": whole}}
    taken = Snapshot().take(given)["x"]
    for name, tensor in taken.items():
        assert torch.equal(tensor, given["x"][name])
        assert tensor.is_contiguous()
    assert len({t.untyped_storage().data_ptr() for t in (*taken.values(), whole)}) == 4


@pytest.mark.gpu
def test_a_snapshot_of_a_gpu_is_of_that_moment() -> None:
    x, snapshot = torch.zeros(1 << 24, device="cuda"), Snapshot()
    for value in range(3):
        x.fill_(value)
        taken = snapshot.take({"g": {"x": x}})["g"]["x"]
        x.fill_(-1.0)
        snapshot.wait()
        assert taken.is_pinned()
        assert (taken == value).all()


# ---- copies


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    yield f"memory://runs/{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/far/away"
    fsspec.filesystem("memory").store.clear()


def saved_steps(local: Path, url: str, *steps: int) -> None:
    with Writer(local, keep=2, say=lambda line: None, copy_to=url) as writer:
        for step in steps:
            writer.save(f"step-{step}", groups(step), {"step": step})


def test_copies_come_back(tmp_path: Path, url: str) -> None:
    saved_steps(tmp_path / "here", url, 1, 2, 3)
    files, root = fsspec.core.url_to_fs(url)
    assert {Path(name).name for name in files.ls(root, detail=False)} == {"step-2", "step-3", "latest.json"}
    Mirror(url).fetch(tmp_path / "there", print)
    assert value_of(checkpoint.load_latest(tmp_path / "there", print)) == 3.0
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"step-3", "latest.json"}
    saved_steps(tmp_path / "here", url, 3)  # once more, under its name
    Mirror(url).fetch(tmp_path / "again", print)
    assert value_of(checkpoint.load_latest(tmp_path / "again", print)) == 3.0


@pytest.mark.parametrize("damage", ["bit", "cut", "no state", "no latest"])
def test_a_damaged_copy_falls_back_loudly(damage: str, tmp_path: Path, url: str) -> None:
    saved_steps(tmp_path / "here", url, 1, 2)
    files, root = fsspec.core.url_to_fs(url)
    name = f"{root}/step-2/net.safetensors"
    if damage == "bit":
        data = bytearray(files.cat_file(name))
        data[-1] ^= 1
        files.pipe_file(name, bytes(data))
    elif damage == "cut":
        files.pipe_file(name, files.cat_file(name)[:-4])
    elif damage == "no state":
        files.rm(f"{root}/step-2/state.json")
    else:
        files.pipe_file(f"{root}/latest.json", b"{}")
    said: list[str] = []
    Mirror(url).fetch(tmp_path / "there", said.append)
    assert value_of(checkpoint.load_latest(tmp_path / "there", print)) == (2.0 if damage == "no latest" else 1.0)
    assert len(said) == 1
    assert url in said[0]
    assert not list((tmp_path / "there").glob(".tmp*"))


def test_a_copy_that_fails_is_tried_again_and_at_the_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def refusing(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    url = f"file://{tmp_path}/far"
    writer = Writer(tmp_path / "here", keep=1, say=said.append, copy_to=url)
    with monkeypatch.context() as patched:
        patched.setattr(type(fsspec.filesystem("file")), "put_file", refusing)
        writer.save("step-1", groups(1.0), {})
        writer.wait()
        assert said[1:] == [f"cannot copy a checkpoint to {url}: permission denied; the next checkpoint tries again"]
        with pytest.raises(FastganError, match="cannot copy a checkpoint to"):
            writer.finish()
    writer.save("step-2", groups(2.0), {})
    writer.finish()
    assert said[-1] == f"copied to {url}/step-2"


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FastganError, match=r"cannot use nowhere://x: .*nowhere"):
        Mirror("nowhere://x")
    Mirror(f"file://{tmp_path}/nothing").fetch(tmp_path / "there", print)
    assert not (tmp_path / "there").exists()
    folder.fetch_copy(tmp_path / "out", "auto", f"file://{tmp_path}/nothing", print)
    assert folder.find_checkpoint(tmp_path / "out", "auto", print) is None
    with pytest.raises(FastganError, match="has no checkpoint"):
        folder.find_checkpoint(tmp_path / "out", f"file://{tmp_path}/nothing", print)


def test_a_run_that_lost_its_disk_goes_on_from_the_copy(tmp_path: Path, url: str) -> None:
    out = tmp_path / "out"
    saved_steps(out / "checkpoints", url, 1, 2)
    for how, other in (("auto", tmp_path / "new"), (url, tmp_path / "branch")):
        (other / "checkpoints" / ".tmp-fetched-step-2").mkdir(parents=True)  # of a start that was killed
        folder.fetch_copy(other, how, url if how == "auto" else "", print)
        assert value_of(folder.find_checkpoint(other, how, print)) == 2.0
    saved_steps(out / "checkpoints", "", 3)
    said: list[str] = []
    folder.fetch_copy(out, url, "", said.append)
    assert value_of(folder.find_checkpoint(out, "auto", print)) == 3.0  # what is here comes first
    assert said == [f"{out} holds a run already: going on with it, not with {url}"]


# ---- one run per folder


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    refused = pytest.raises(FastganError, match="is being trained in by another process")
    with folder.only_one(out), refused, folder.only_one(out):
        pass
    assert not out.exists()  # nothing came of it
    with folder.only_one(out):
        (out / "config.toml").touch()
    with folder.only_one(out):
        pass
    assert (out / "config.toml").exists()
    with pytest.raises(FastganError, match="is a file"), folder.only_one(out / "config.toml"):
        pass


def test_the_dead_hold_no_lock(tmp_path: Path) -> None:
    code = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
    code += "; print('mine', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-S", "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(FastganError, match="another process"), folder.only_one(tmp_path):
        pass
    other.kill()
    other.communicate()
    with folder.only_one(tmp_path):
        pass


# ---- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_set_a_flag_and_ignored_ones_stay_ignored(name: str) -> None:
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_DFL)  # whatever these tests were started by has made of it
    try:
        with StopSignals() as signals:
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert signals.received == name
        signal.signal(number, signal.SIG_IGN)
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
            assert signals.received is None
    finally:
        signal.signal(number, before)


def test_an_interrupt_while_pytorch_is_loaded_is_one_line() -> None:
    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen([sys.executable, "-m", "fastgan", "train", "--data", "digits", "--dry-run"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=as_in_a_terminal)  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        process.kill()
        pytest.skip("needs /proc")
    while "libtorch" not in maps.read_text() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 3
    assert error.splitlines() == ["fastgan: interrupted before anything began"]


# ---- checkpoints of the past


def of_schema_1(tmp_path: Path, preset: str) -> checkpoint.Checkpoint:
    """A checkpoint as version 1 wrote it: its systems knew no augmentation."""
    config = to_mapping(PRESETS[preset])
    del config["system"]["augment"]
    del config["output"]["copy_to"]
    path = checkpoint.save(tmp_path, "step-1", groups(1.0), {"config": config, "data": {"images": 1}}, keep=1)
    head = checkpoint.unseal(path / "state.json")
    (path / "state.json").write_bytes(checkpoint.seal(json.dumps({**head, "schema": 1})))
    return checkpoint.load(path)


@pytest.mark.parametrize("preset", ["dcgan-64", "r3gan-64"])
def test_a_checkpoint_of_schema_1_goes_on(preset: str, tmp_path: Path) -> None:
    config = PRESETS[preset]
    saved = of_schema_1(tmp_path, preset)
    assert saved.state["config"]["system"]["augment"] == {"kind": "none"}
    folder.check_same_run(saved, to_mapping(config), {"images": 1}, defaults(config))
    mapping = to_mapping(config)
    mapping["system"]["augment"]["kind"] = "diffaugment"
    with pytest.raises(FastganError, match=r"system.augment.kind was 'none' there and is 'diffaugment' here"):
        folder.check_same_run(saved, mapping, {"images": 1}, defaults(config))


def test_an_option_that_came_later_must_be_at_its_default(tmp_path: Path) -> None:
    config = PRESETS["dcgan-64"]
    saved = of_schema_1(tmp_path, "dcgan-64")
    del saved.state["config"]["data"]["mirror"]
    folder.check_same_run(saved, to_mapping(config), {"images": 1}, defaults(config))
    mapping = to_mapping(config)
    mapping["data"]["mirror"] = True
    with pytest.raises(FastganError, match=r"data.mirror was False there and is True here"):
        folder.check_same_run(saved, mapping, {"images": 1}, defaults(config))


def test_each_version_has_its_step() -> None:
    assert sorted(migrate.STEPS) == list(range(1, migrate.SCHEMA))
    for broken in ({}, {"config": 3}, {"config": {"system": []}}):
        assert migrate.migrated(broken, 1) == broken
    given = {"config": {"system": {}}}
    assert migrate.migrated(given, 1) != given
    assert given == {"config": {"system": {}}}
    assert migrate.migrated(given, migrate.SCHEMA) == given
