r"""Eigenvalues of symmetric matrices: what the trace of a matrix root spends most of its time on.

    a = Q diag(values) Q^T        a: [..., n, n], values: [..., n], ascending

LAPACK's way to a tridiagonal matrix reads the whole matrix once per column, in products with vectors: memory decides.
On a CPU ours goes by a band of 32 (csrc/cpu/band_reduction.h): 4/3 n^3 operations in products of matrices, then
O(32 n^2) from the band to a tridiagonal matrix (bulge_chasing.h), then O(n^2) to the eigenvalues (tridiagonal.h).
Backward stable as LAPACK's: values are off by a few dozen roundings of the largest at n = 2048, by either way.

In fp64 alone, and not differentiable. On GPUs, and for small matrices, the library's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose

# [..., n, n] that test and benchmark share: features of Inception, few samples, around the width of the band, a batch
CASES: dict[str, tuple[int, ...]] = {
    "2048 features": (2048, 2048),
    "1000 samples": (1000, 1000),
    "a batch": (2, 130, 130),
    "band and one": (33, 33),
    "small": (5, 5),
    "one": (1, 1),
}
LEAST = 256  # rows from which on ours is taken


def symmetric_eigenvalues(a: Tensor) -> Tensor:
    """[..., n] fp64, ascending, of a: [..., n, n] fp64, of which the lower triangle is read.

    Raises FastganError for other types and shapes.
    """
    if a.dtype != torch.float64 or a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        raise FastganError(f"symmetric_eigenvalues: expected a float64 [..., n, n], got {a.dtype} {list(a.shape)}")
    if a.shape[-1] < LEAST or not choose("symmetric_eigenvalues", a.device).native:
        return reference(a)
    return native(a)


def reference(a: Tensor) -> Tensor:
    """The same in plain PyTorch, by LAPACK or cuSOLVER."""
    values: Tensor = torch.linalg.eigvalsh(a)
    return values


def native(a: Tensor) -> Tensor:
    """By our C++, matrix by matrix; by the library where one is not finite or, which was never seen, not converging."""
    out = a.new_empty(a.shape[:-1])
    given = a if a.stride(-1) == 1 and a.dim() == 2 else a.contiguous()
    for matrix, values in zip(given.reshape(-1, *a.shape[-2:]), out.view(-1, a.shape[-1]), strict=True):
        if _solve(matrix, values):
            values.copy_(reference(matrix))
    return out


def _solve(matrix: Tensor, values: Tensor) -> bool:
    """Eigenvalues of `matrix` into `values`. Returns whether it failed."""
    status: int = EXTENSION.module.symmetric_eigenvalues_cpu(
        matrix.data_ptr(), values.data_ptr(), matrix.shape[0], matrix.stride(0), torch.get_num_threads()
    )
    return status != 0
