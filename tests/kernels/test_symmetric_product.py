"""Symmetric products with a polynomial: the reference, and the CUDA kernel in the emulator and on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import sys
from ctypes import c_double, c_int, c_int64, c_void_p
from typing import Any

import pytest
import torch
from kernels.emulator.build import build
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels import symmetric_product as op
from fastgan.kernels.symmetric_product import CASES, symmetric_product

F64 = torch.float64
FACTORS = [(1.0, 0.0, 0.0), (0.4, -1.3, 1.9), (2.0, 0.0, 0.5)]


def exact(a: Tensor, b: Tensor | None, square: float, linear: float, constant: float) -> Tensor:
    out = square * (a.mT.unsqueeze(-1) * a.unsqueeze(-3)).sum(-2)
    out = out if b is None else out + linear * b
    return out + constant * torch.eye(a.shape[-1], dtype=F64)


def inputs(shape: tuple[int, ...], with_b: bool) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(shape, generator=generator, dtype=F64)
    b = torch.randn(*shape[:-2], shape[-1], shape[-1], generator=generator, dtype=F64)
    return a, b + b.mT if with_b else None


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 6), (1, 1), (3, 9, 2), (0, 4)])
def test_the_reference(shape: tuple[int, ...], with_b: bool, factors: tuple[float, ...]) -> None:
    a, b = inputs(shape, with_b)
    before = None if b is None else b.clone()
    square, linear, constant = factors
    made = symmetric_product(a, b, square=square, linear=linear, constant=constant)
    torch.testing.assert_close(made, exact(a, b, *factors), rtol=1e-14, atol=1e-14)
    assert b is None or torch.equal(b, before)  # type: ignore[arg-type]
    made = symmetric_product(a.mT.contiguous().mT, b, square=square, linear=linear, constant=constant)
    torch.testing.assert_close(made, exact(a, b, *factors), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 3), None, "float64"),
        (torch.zeros(3, dtype=F64), None, r"\[\.\.\., m, n\]"),
        (torch.zeros(5, 3, dtype=F64), torch.zeros(5, 5, dtype=F64), r"expected b .*\[3, 3\].* got .*\[5, 5\]"),
        (torch.zeros(5, 3, dtype=F64), torch.zeros(3, 3), "float32"),
    ],
)
def test_what_it_refuses(a: Tensor, b: Tensor | None, message: str) -> None:
    with pytest.raises(FastganError, match=message):
        symmetric_product(a, b)


# ---- the CUDA kernel in the emulator


class Product(ctypes.Structure):
    """As in csrc/symmetric_product.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("a", "b", "out")),
        *((name, c_int64) for name in ("batch", "rows", "n")),
        *((name, c_double) for name in ("square", "linear", "constant")),
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not sys.platform.startswith("linux") or not shutil.which("g++"):
        pytest.skip("needs g++ on Linux")
    return ctypes.CDLL(str(build("g++", tmp_path_factory.mktemp("emulated"), "symmetric_product.cu")))


# One tile and several, whole and ragged ones, rows that end within a stage, rows whose start is not aligned, a batch
SHAPES = [(16, 64), (5, 130), (37, 129), (33, 70), (2, 20, 66), (3, 1, 1), (1, 65)]


@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_in_the_emulator(shape: tuple[int, ...], with_b: bool, emulated: Any) -> None:
    a, b = inputs(shape, with_b)
    n = shape[-1]
    factors = FACTORS[1]
    results = []
    for _ in range(2):
        out = torch.full((*shape[:-2], n, n), torch.nan, dtype=F64)
        address = None if b is None else b.data_ptr()
        batch = shape[0] if len(shape) == 3 else 1
        product = Product(a.data_ptr(), address, out.data_ptr(), batch, shape[-2], n, *factors)
        assert emulated.fastgan_symmetric_product_cuda(ctypes.byref(product), c_int(0), None) == 0
        results.append(out)
    torch.testing.assert_close(results[0], exact(a, b, *factors), rtol=1e-13, atol=1e-13)
    assert torch.equal(results[0], results[0].mT)
    assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_on_a_gpu(case: str, with_b: bool) -> None:
    a, b = inputs(CASES[case], with_b)
    on_gpu = [None if t is None else t.cuda() for t in (a, b)]
    made = op.native(on_gpu[0], on_gpu[1], FACTORS[1])  # type: ignore[arg-type]
    torch.testing.assert_close(made.cpu(), op.reference(a, b, *FACTORS[1]), rtol=1e-12, atol=1e-11)
    assert torch.equal(made, made.mT)
