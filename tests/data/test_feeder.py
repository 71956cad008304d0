"""Batches are a pure function of (seed, sample numbers): over resumes, ranks, memory paths and time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.contract import Batch
from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.feeder import CLOSE_SECONDS, Feeder
from fastgan.data.image_set import Indices, Pixels, fetch_from
from fastgan.data.lanes import PREFETCH
from fastgan.data.sampler import flips, image_order
from fastgan.errors import FastganError

COUNT, SIZE = 50, 6


def make_set(channels: int = 3, labelled: bool = True, fetch: Callable | None = None) -> ImageSet:
    return ImageSet(
        name="made up",
        size=SIZE,
        channels=channels,
        count=COUNT,
        fetch=fetch or fetch_from(make_pixels(channels)),
        summary="",
        labels=np.arange(COUNT) % 7 if labelled else None,
        classes=tuple("abcdefg") if labelled else (),
    )


def make_pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, channels), dtype=np.uint8)


def running() -> int:
    """How many feeders have threads that run, of Python or of the native part (of which a small batch has one)."""
    python = {thread.native_id for thread in threading.enumerate() if thread.name == "fastgan-feeder"}
    native = {int(task.name) for task in Path("/proc/self/task").iterdir() if name_of(task) == "fastgan-feeder"}
    return len(python | native)


def name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:  # it has just ended
        return ""


def none_runs_soon() -> bool:
    """A native thread says that it ends, and then does."""
    deadline = time.monotonic() + 20
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return running() == 0


def take(number: int, images: ImageSet | None = None, **options: object) -> list[Batch]:
    with Feeder(images or make_set(), **{"seed": 3, "batch": 8, **options}) as feeder:
        return list(islice(feeder, number))


def equal(a: Batch, b: Batch) -> bool:
    assert a.labels is not None
    assert b.labels is not None
    pairs = (a.images, b.images), (a.labels, b.labels), (a.index, b.index)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_what_the_order_says(channels: int) -> None:
    pixels = make_pixels(channels)
    for number, batch in enumerate(take(20, make_set(channels))):  # more than three epochs
        samples = np.arange(number * 8, number * 8 + 8)
        order = image_order(3, COUNT, samples)
        expected = (torch.from_numpy(pixels[order]).permute(0, 3, 1, 2).float() - 127.5) / 127.5
        assert batch.images.shape == (8, channels, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.images, expected)
        assert batch.labels is not None
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert batch.labels.tolist() == (order % 7).tolist()
        assert batch.index.tolist() == samples.tolist()


def test_values_are_exact_and_come_back() -> None:
    every = np.arange(256, dtype=np.uint8)
    ramp = ImageSet(
        name="ramp", size=16, channels=1, count=2, summary="",
        fetch=fetch_from(np.stack([every.reshape(16, 16, 1)] * 2)),
    )  # fmt: skip
    values = take(1, ramp, batch=1)[0].images.flatten()
    assert values[0] == -1
    assert values[255] == 1
    assert torch.equal(values, -values.flip(0))
    assert (values * 127.5 + 127.5).round().to(torch.uint8).tolist() == every.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_the_float32_values_cast(dtype: torch.dtype) -> None:
    batch = take(1, dtype=dtype)[0]
    assert batch.images.dtype == dtype
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, take(1)[0].images.to(dtype))


def test_a_set_without_classes_has_no_labels() -> None:
    assert take(1, make_set(labelled=False))[0].labels is None


@pytest.mark.parametrize("first_batch", [1, 5, 13])
def test_a_resumed_run_sees_exactly_the_rest(first_batch: int) -> None:
    whole = take(20, mirror=True)
    rest = take(20 - first_batch, first_sample=8 * first_batch, mirror=True)
    assert all(equal(a, b) for a, b in zip(whole[first_batch:], rest, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_see_what_a_single_one_sees(world: int) -> None:
    single = take(12, first_sample=16, mirror=True)
    ranks = [take(12, batch=8 // world, rank=rank, world=world, first_sample=16, mirror=True) for rank in range(world)]
    for number, batch in enumerate(single):
        parts = [batches[number] for batches in ranks]
        together = Batch(
            torch.cat([p.images for p in parts]),
            torch.cat([p.labels for p in parts if p.labels is not None]),
            torch.cat([p.index for p in parts]),
        )
        assert equal(batch, together)


def test_the_seed_matters() -> None:
    assert not equal(take(1)[0], take(1, seed=4)[0])


def test_mirror_flips_the_samples_that_the_coin_says() -> None:
    for plain, mirrored in zip(take(10), take(10, mirror=True), strict=True):
        flipped = torch.from_numpy(flips(3, plain.index.numpy()))
        assert torch.equal(mirrored.images[flipped], plain.images[flipped].flip(3))
        assert torch.equal(mirrored.images[~flipped], plain.images[~flipped])
    assert np.abs(np.diff(make_pixels().astype(int), axis=2)).max() > 0  # a flip shows


def test_both_memory_paths_give_the_same_batches(tmp_path: Path) -> None:
    for i, pixels in enumerate(make_pixels()[:20]):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    options = {"path": str(tmp_path), "size": SIZE, "min_side": SIZE}
    in_memory, on_demand = (
        take(10, open_images(DataOptions(**options, memory_gb=gb)), mirror=True) for gb in (4.0, 0.0)
    )
    for a, b in zip(in_memory, on_demand, strict=True):
        assert torch.equal(a.images, b.images)
    assert not torch.equal(in_memory[0].images, in_memory[1].images)


def test_batches_that_are_kept_do_not_change() -> None:
    with Feeder(make_set(), seed=3, batch=8) as feeder:
        first = next(feeder)
        copy = first.images.clone()
        for _ in range(20):
            next(feeder)
    assert torch.equal(first.images, copy)


@pytest.mark.parametrize(
    ("options", "most"),
    [({"batch": 51}, 50), ({"batch": 17, "world": 3}, 48)],
)
def test_a_batch_larger_than_the_set_is_refused(options: dict[str, int], most: int) -> None:
    with pytest.raises(FastganError) as raised:
        Feeder(make_set(), seed=0, **options)
    assert str(raised.value) == (f"batch 51 is larger than the 50 images in made up: use --batch {most} or less")
    assert none_runs_soon()
    assert len(take(2, batch=50)) == 2


def test_an_error_in_the_thread_reaches_the_consumer_where_it_happened() -> None:
    calls = 0

    def fetch(indices: Indices, out: Pixels) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise FastganError("image 3 is bad")
        out[:] = 0

    with Feeder(make_set(fetch=fetch), seed=0, batch=8) as feeder:
        next(feeder)
        next(feeder)
        for _ in range(2):
            with pytest.raises(FastganError, match="image 3 is bad"):
                next(feeder)
    assert calls == 3


def test_the_thread_does_not_run_ahead_further_than_it_may() -> None:
    calls = []

    def fetch(indices: Indices, out: Pixels) -> None:
        calls.append(len(indices))

    with Feeder(make_set(fetch=fetch), seed=0, batch=8) as feeder:
        for taken in range(3):
            deadline = time.monotonic() + 20
            while len(calls) < PREFETCH + taken and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            assert len(calls) == PREFETCH + taken
            next(feeder)


def test_closing_ends_the_thread_whatever_it_is_doing() -> None:
    calls = []

    def slow(indices: Indices, out: Pixels) -> None:
        calls.append(len(indices))
        time.sleep(0.3)

    for fetch, taken in ((None, 0), (None, 4), (slow, 0)):
        feeder = Feeder(make_set(fetch=fetch), seed=0, batch=8)
        for _ in range(taken):
            next(feeder)
        assert running() == 1
        begin = time.monotonic()
        feeder.close()
        feeder.close()
        assert time.monotonic() - begin < CLOSE_SECONDS / 2
        assert none_runs_soon()
    assert len(calls) < PREFETCH  # the batches that nobody will ask for are not read
    with pytest.raises(RuntimeError, match="of the consumer"), Feeder(make_set(), seed=0, batch=8):
        raise RuntimeError("of the consumer")
    assert none_runs_soon()


def test_threads_end_with_a_feeder_that_is_forgotten() -> None:
    feeder = Feeder(make_set(), seed=0, batch=8)
    next(feeder)
    assert running() == 1
    del feeder
    assert none_runs_soon()


def test_closing_does_not_wait_for_a_read_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgan.data.feeder.CLOSE_SECONDS", 0.2)
    answered = threading.Event()
    feeder = Feeder(make_set(fetch=lambda indices, out: answered.wait(60)), seed=0, batch=8)
    begin = time.monotonic()
    feeder.close()
    assert time.monotonic() - begin < 20
    answered.set()


def test_waiting_is_measured() -> None:
    def slow(indices: Indices, out: Pixels) -> None:
        time.sleep(0.05)

    with Feeder(make_set(fetch=slow), seed=0, batch=8) as feeder:
        assert feeder.wait_seconds == 0
        for _ in range(6):
            next(feeder)
        assert 0.2 < feeder.wait_seconds < 3
    with Feeder(make_set(), seed=0, batch=8) as feeder:
        for _ in range(6):
            time.sleep(0.05)
            next(feeder)
        assert feeder.wait_seconds < 0.25


def test_forgotten_feeders_do_not_keep_the_program_alive(tmp_path: Path) -> None:
    for i, pixels in enumerate(make_pixels()[:4]):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    code = f"""
import time
from fastgan.data import DataOptions, open_images
from fastgan.data.feeder import Feeder
feeders = []
for memory_gb in (4.0, 0.0):
    options = DataOptions(path={str(tmp_path)!r}, size=8, min_side=1, memory_gb=memory_gb)
    feeders.append(Feeder(open_images(options), seed=0, batch=2))
    next(feeders[-1])
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=100, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.gpu
def test_batches_on_the_gpu_are_those_of_the_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with Feeder(make_set(), seed=3, batch=8, device="cuda", mirror=True, dtype=dtype) as feeder:
            batches = list(islice(feeder, 40))  # many more than the pinned buffers
        for a, b in zip(batches, take(40, mirror=True, dtype=dtype), strict=True):
            assert a.images.is_cuda
            assert a.index.is_cuda
            assert a.images.is_contiguous(memory_format=torch.channels_last)
            assert a.labels is not None
            assert equal(Batch(a.images.cpu(), a.labels.cpu(), a.index.cpu()), b)


@pytest.mark.gpu
def test_the_thread_does_not_disturb_graph_capture() -> None:
    def slow(indices: Indices, out: Pixels) -> None:
        time.sleep(0.02)

    x = torch.zeros(8, device="cuda")
    with Feeder(make_set(fetch=slow), seed=3, batch=8, device="cuda") as feeder:
        next(feeder)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x += 1
            time.sleep(0.1)  # the thread works meanwhile
        next(feeder)
        graph.replay()
    assert x.tolist() == [1.0] * 8
