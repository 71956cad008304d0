"""Batches out of memory: bits, checksums, bounds; by the native part, and without it."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastgan.data.rows import AS_STORED, Rows, crc32, native
from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose
from fastgan.kernels.ingest import TYPES, ingest

SHAPES = [(64, 64, 3), (5, 7, 3), (4, 33, 1), (3, 6, 4), (1, 1, 3), (2, 1500, 3)]
KINDS = TYPES | {torch.uint8: AS_STORED}


@pytest.fixture(params=["native", "library"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "native" and EXTENSION.module is None:
        pytest.skip(EXTENSION.cpu)
    monkeypatch.setenv("FASTGAN_KERNELS", "auto" if request.param == "native" else "library")
    choose.cache_clear()
    assert (native() is not None) == (request.param == "native")
    yield
    choose.cache_clear()


def made(shape: tuple[int, ...] = (4, 4, 3), count: int = 20) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return pixels, np.array([zlib.crc32(image) for image in pixels], np.uint32)


def test_the_sum_is_that_of_zlib() -> None:
    data = np.random.default_rng(0).integers(0, 256, 12_289, dtype=np.uint8)
    for start in (0, 1, 7):
        for size in [*range(300), 4096, 12_288]:
            piece = data[start : start + size]
            assert crc32(piece) == zlib.crc32(piece), size
    assert crc32(b"123456789") == 0xCBF43926
    assert crc32(memoryview(b"")) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_a_batch_has_the_bits_of_ingest(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also of a batch that is too large for the cache, and into memory that is not aligned."""
    module = native()
    if module is None:
        return
    pixels, sums = made(shape)
    for count in (13, 200):
        numbers = np.random.default_rng(1).integers(0, len(pixels), count)
        flip = torch.from_numpy(np.random.default_rng(2).integers(0, 2, count).astype(np.bool_))
        for chosen in (None, flip):
            for offset in (0, 1):
                room = torch.full((count * pixels[0].size + 64,), 7, dtype=dtype)
                out = room[offset : offset + count * pixels[0].size]
                address = 0 if chosen is None else chosen.data_ptr()
                Rows(pixels, sums).gather(module, numbers, out.data_ptr(), KINDS[dtype], address)
                raw = torch.from_numpy(pixels[numbers])
                if dtype != torch.uint8:
                    expected = ingest(raw, chosen, dtype).permute(0, 2, 3, 1)
                else:
                    expected = raw if chosen is None else torch.where(chosen[:, None, None, None], raw.flip(2), raw)
                assert torch.equal(out.view(expected.shape), expected)
                assert (room[:offset] == 7).all()
                assert (room[offset + out.numel() :] == 7).all()


@pytest.mark.parametrize("once", [True, False])
def test_a_changed_byte_is_found_when_the_image_is_read(once: bool) -> None:
    pixels, sums = made()
    rows = Rows(pixels, sums, once=once, name=lambda image: f"picture {image}")
    out = np.empty((3, 4, 4, 3), np.uint8)
    rows.copy(np.array([3, 0, 3]), out)
    assert (out == pixels[[3, 0, 3]]).all()
    pixels[7, 1, 2, 0] ^= 4
    rows.copy(np.array([6, 8, 9]), out)
    for _ in range(2):
        with pytest.raises(
            FastganError, match=r"^picture 7: does not match its checksum; copy it again, or pack again$"
        ):
            rows.copy(np.array([2, 7, 1]), out)
    pixels[3, 0, 0, 0] ^= 1  # after it was compared
    if once:
        rows.copy(np.array([3, 0, 3]), out)
    else:
        with pytest.raises(FastganError, match="picture 3"):
            rows.copy(np.array([0, 3, 3]), out)


@pytest.mark.parametrize("number", [-1, 20, 2**40, -(2**62)])
def test_no_image_beyond_the_last(number: int) -> None:
    rows = Rows(*made())
    with pytest.raises(AssertionError):
        rows.copy(np.array([0, number]), np.empty((2, 4, 4, 3), np.uint8))


def test_into_memory_that_is_not_in_one_piece() -> None:
    pixels, sums = made()
    room = np.zeros((5, 2, 4, 4, 3), np.uint8)
    Rows(pixels, sums).copy(np.arange(5), room[:, 1])
    assert (room[:, 1] == pixels[:5]).all()
    assert not room[:, 0].any()


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=str)
def test_a_mapped_file_that_becomes_shorter_is_an_error_of_its_image(kind: torch.dtype, tmp_path: Path) -> None:
    """And not the end of the process (SIGBUS). The images in front of the end are still there."""
    module = native()
    if module is None:
        return
    pixels, sums = made((64, 64, 1), 8)  # a page each
    path = tmp_path / "shard"
    path.write_bytes(pixels.tobytes())
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8).reshape(pixels.shape)
    rows = Rows(mapped, sums, name=lambda image: f"picture {image}")
    out = torch.empty(3, 64, 64, 1, dtype=kind)
    rows.gather(module, np.array([7, 1, 6]), out.data_ptr(), KINDS[kind])  # compared, and good
    os.truncate(path, 6 * 4096)
    for _ in range(2):
        with pytest.raises(FastganError, match=r"^picture 6: does not match its checksum"):
            rows.gather(module, np.array([5, 6, 7]), out.data_ptr(), KINDS[kind])
    rows.gather(module, np.array([5, 0, 3]), out.data_ptr(), KINDS[kind])
    assert crc32(mapped[6:7]) == -1
    assert crc32(mapped[5:6]) == int(sums[5])
