"""ingest: bit for bit NumPy's values, in every type and layout, flipped and not, on the CPU and in the emulator."""

from __future__ import annotations

import ctypes
import shutil
import sys
from ctypes import c_int64, c_void_p
from typing import Any

import numpy as np
import pytest
import torch
from kernels.emulator.build import build
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.ingest import CASES, TYPES, ingest, ingest_into


def inputs(shape: tuple[int, ...], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return pixels.to(device), (torch.arange(shape[0]) % 3 != 1).to(device)


def exact(pixels: Tensor, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """By NumPy, in the order of operations that is promised."""
    raw = pixels.cpu().numpy().copy()
    if flip is not None:
        chosen = flip.cpu().numpy()
        raw[chosen] = raw[chosen][:, :, ::-1]
    made = np.divide(np.subtract(raw, np.float32(127.5), dtype=np.float32), np.float32(127.5))
    return torch.from_numpy(made).to(dtype).permute(0, 3, 1, 2)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_gives_the_bits_of_numpy(case: str, dtype: torch.dtype, device: torch.device) -> None:
    pixels, flip = inputs(CASES[case], device)
    for chosen in (None, flip):
        made = ingest(pixels, chosen, dtype)
        assert made.dtype == dtype
        assert made.device == device
        assert torch.equal(made.cpu(), exact(pixels, chosen, dtype))
        assert made.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.usefixtures("implementation")
def test_all_256_values_and_the_ends_of_the_range(device: torch.device) -> None:
    pixels = torch.arange(256, dtype=torch.uint8, device=device).reshape(1, 16, 16, 1)
    made = ingest(pixels).flatten()
    assert made[0] == -1
    assert made[255] == 1
    assert (made[1:] > made[:-1]).all()
    assert torch.equal(made, -made.flip(0))


@pytest.mark.usefixtures("implementation")
def test_what_is_not_contiguous_and_more_than_one_thread(device: torch.device) -> None:
    pixels, flip = inputs((6, 40, 66, 3), device)
    strided, chosen = pixels.transpose(1, 2)[::2], flip[::2]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(ingest(strided, chosen).cpu(), exact(strided, chosen, torch.float32))
        wide = inputs((1, 300, 500, 3), device)
        assert torch.equal(ingest(*wide).cpu(), exact(*wide, torch.float32))
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("case", CASES)
def test_into_memory_that_is_there(case: str) -> None:
    pixels, flip = inputs(CASES[case])
    for chosen in (None, flip):
        out = torch.full(CASES[case], torch.nan)
        ingest_into(out, pixels, chosen)
        assert torch.equal(out.permute(0, 3, 1, 2), exact(pixels, chosen, torch.float32))


@pytest.mark.usefixtures("implementation")
def test_as_an_op_of_torch(device: torch.device) -> None:
    pixels, flip = inputs((3, 5, 7, 3), device)
    for chosen in (None, flip):
        torch.library.opcheck(torch.ops.fastgan.ingest.default, (pixels, chosen, torch.bfloat16))
    compiled = torch.compile(lambda p, f: ingest(p, f) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pixels, flip), ingest(pixels, flip) + 1)


PIXELS = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: ingest(PIXELS.float()), r"expected `pixels` as a uint8 tensor \[N, H, W, C\], got torch.float32"),
        (lambda: ingest(PIXELS[0]), r"expected `pixels` .*, got torch.uint8 \(4, 4, 3\)"),
        (
            lambda: ingest(PIXELS, torch.zeros(3, dtype=torch.bool)),
            r"`flip` as a bool tensor \[2\] on cpu, got .*\(3,\)",
        ),
        (lambda: ingest(PIXELS, torch.zeros(2)), "expected `flip` as a bool tensor .* got torch.float32"),
        (lambda: ingest(PIXELS, None, torch.int64), "expected float32, bfloat16, float16 or float64, got torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bad: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        bad()
    assert "\n" not in str(error.value)


# ---- the CUDA kernel in the emulator


class Ingest(ctypes.Structure):
    """As in csrc/ingest.h."""

    _fields_ = (
        ("pixels", c_void_p),
        ("flip", c_void_p),
        *((name, c_int64) for name in ("samples", "height", "width", "channels")),
        ("out", c_void_p),
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not sys.platform.startswith("linux") or not shutil.which("g++"):
        pytest.skip("needs g++ on Linux")
    return ctypes.CDLL(str(build("g++", tmp_path_factory.mktemp("emulated"), "ingest.cu")))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("batch of 64x64", "256x256")])
def test_the_cuda_kernel(case: str, dtype: torch.dtype, emulated: Any) -> None:
    pixels, flip = inputs(CASES[case])
    for chosen in (None, flip):
        room = torch.full((pixels.numel() + 16,), 7.0, dtype=dtype)
        address = None if chosen is None else chosen.data_ptr()
        arguments = Ingest(pixels.data_ptr(), address, *pixels.shape, room.data_ptr())
        assert emulated.fastgan_ingest_cuda(ctypes.byref(arguments), TYPES[dtype], 0, None) == 0
        made = room[: pixels.numel()].reshape(pixels.shape).permute(0, 3, 1, 2)
        assert torch.equal(made, exact(pixels, chosen, dtype))
        assert (room[pixels.numel() :] == 7).all()
