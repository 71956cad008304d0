r"""Symmetric products with a polynomial: what the polar factor of a matrix is made of.

    out = square * a^T a + linear * b + constant * I        a: [..., m, n],  b: [..., n, n], symmetric

The result is symmetric, so that half of the arithmetic of a matrix product is enough; and the polynomial, for which the
library goes through memory two times more, is added where the product is written. A step of Polar Express
(Amsel et al. 2025, arXiv:2505.16932) is x (c0 I + c1 g + c2 g^2) with g = x^T x: two of these and one plain product.

In fp64 alone, and not differentiable. On GPUs: csrc/cuda/symmetric_product.cu, by fp64 tensor cores, where it is
verified and has measured faster than the library; elsewhere, and on a CPU, the library's product.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose, disable
from fastgan.kernels._runtime.measure import decide

# [..., m, n] that test, check and benchmark share: features of Inception, its rank-deficient case, ragged ones
CASES: dict[str, tuple[int, ...]] = {
    "2048 features": (2048, 2048),
    "few samples": (1000, 1000),
    "tall": (300, 70),
    "odd": (37, 129),
    "a batch": (3, 65, 64),
    "one": (1, 1),
}


def symmetric_product(
    a: Tensor, b: Tensor | None = None, *, square: float = 1.0, linear: float = 0.0, constant: float = 0.0
) -> Tensor:
    """square aᵀ a + linear b + constant I, [..., n, n], exactly symmetric on a GPU where our kernel runs.

    a: [..., m, n] fp64;  b: [..., n, n] fp64, symmetric, of which half is read;  None: 0
    Raises FastganError for other types and shapes.
    """
    if a.dtype != torch.float64 or a.dim() < 2:
        raise FastganError(f"symmetric_product: expected a float64 [..., m, n], got {a.dtype} {list(a.shape)}")
    n = a.shape[-1]
    if b is not None and (b.dtype != a.dtype or b.shape != (*a.shape[:-2], n, n) or b.device != a.device):
        raise FastganError(
            f"symmetric_product: expected b {a.dtype} {[*a.shape[:-2], n, n]} on {a.device}, "
            f"got {b.dtype} {list(b.shape)} on {b.device}"
        )
    factors = (square, linear, constant)
    library = functools.partial(reference, a, b, *factors)
    if not choose("symmetric_product", a.device).native or not a.numel():
        return library()
    ours = functools.partial(native, a, b, factors)
    key = f"{list(a.shape)}, {'with' if b is not None else 'no'} b"
    name = decide("symmetric_product", key, {"PyTorch": library, "CUDA C++": ours}, a.device)
    return ours() if name == "CUDA C++" else library()


def reference(a: Tensor, b: Tensor | None, square: float, linear: float, constant: float) -> Tensor:
    """The same in plain PyTorch: one product, and the polynomial in its place."""
    if b is None:
        out = a.mT @ a
        out = out if square == 1 else out.mul_(square)
    elif a.dim() == 2:
        out = torch.addmm(b, a.mT, a, beta=linear, alpha=square)
    else:
        flat = a.reshape(-1, *a.shape[-2:])
        out = torch.baddbmm(b.reshape(-1, *b.shape[-2:]), flat.mT, flat, beta=linear, alpha=square).view(b.shape)
    if constant:
        out.diagonal(dim1=-2, dim2=-1).add_(constant)
    return out


def native(a: Tensor, b: Tensor | None, factors: tuple[float, float, float]) -> Tensor:
    """By our kernel; where its launch fails by the library, and so from then on."""
    a = a.contiguous()
    b = None if b is None else b.contiguous()
    m, n = a.shape[-2:]
    out = a.new_empty(*a.shape[:-2], n, n)
    status = EXTENSION.module.symmetric_product_cuda(
        a.data_ptr(),
        0 if b is None else b.data_ptr(),
        out.data_ptr(),
        [math.prod(a.shape[:-2]), m, n],
        factors,
        a.device.index,
        torch.cuda.current_stream(a.device).cuda_stream,
    )
    if status:
        disable("symmetric_product", a.device, status)
        return reference(a, b, *factors)
    return out
