"""The principal square root of a matrix, differentiable to any order.

X with X X = A and eigenvalues in the right half-plane. Symmetric A: by its eigenvalues. Any other: the product form
of the scaled Denman-Beavers iteration (Cheng, Higham, Kenney, Laub 2001), and one Newton step. Its derivative dX solves
the Sylvester equation X dX + dX X = dA, by Roberts' iteration for the matrix sign, or by the
eigenvectors of a symmetric X.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.arrays import tensor_of

STEPS = 60  # both iterations are quadratic after scaling: what has no root shows by not converging


def sqrtm(a: Any) -> Any:
    """a: [..., d, d], real, a tensor or a NumPy array, without eigenvalues on the closed negative real axis; symmetric
    ones may be singular.

    Computed in fp64 and returned in the type of `a`. At singular `a` the root exists but not its gradient (inf or NaN).
    """
    if isinstance(a, np.ndarray):
        given = tensor_of("sqrtm", a)
        return sqrtm(given if given.is_floating_point() or given.is_complex() else given.double()).numpy()
    if not isinstance(a, Tensor) or not a.is_floating_point() or a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        got = f"{a.dtype} {list(a.shape)}" if isinstance(a, Tensor) else type(a).__name__
        raise FastganError(f"sqrtm: expected a real tensor or array of square matrices [..., d, d], got {got}")
    if not bool(a.isfinite().all()):
        raise FastganError("sqrtm: expected finite values, got NaN or infinity")
    return root(a.double()).to(a.dtype)


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        out = _symmetric_root(a) if torch.equal(a, a.mT) else _general_root(a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return sylvester(out.mT, grads[0])


class _Sylvester(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor) -> Tensor:
        out = _solve(x, g)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, out = ctx.saved_tensors
        adjoint = sylvester(x.mT, grads[0])
        return -(adjoint @ out.mT + out.mT @ adjoint), adjoint


def root(a: Tensor) -> Tensor:
    out: Tensor = _Root.apply(a)  # type: ignore[no-untyped-call]
    return out


def sylvester(x: Tensor, g: Tensor) -> Tensor:
    """Z with x Z + Z x = g, for x [..., d, d] with eigenvalues in the open right half-plane; differentiable."""
    out: Tensor = _Sylvester.apply(x, g)  # type: ignore[no-untyped-call]
    return out


def _symmetric_root(a: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    size = values.abs().amax(-1, keepdim=True) if a.shape[-1] else values
    rounding = 1e-13 * a.shape[-1] ** 0.5 * size
    if bool((values < -rounding).any()):
        raise FastganError(f"sqrtm: expected eigenvalues >= 0 of the symmetric matrix, got {float(values.min()):.3g}")
    out = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    return 0.5 * torch.add(out, out.mT)


def _general_root(a: Tensor) -> Tensor:
    x, m = a, a
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(STEPS):
        inverse, info = torch.linalg.inv_ex(m)
        scale = _scale(m) ** 0.5  # brings |det m| to 1
        x = 0.5 * scale * x @ (eye + inverse / scale**2)
        m = 0.5 * (eye + 0.5 * (scale**2 * m + inverse / scale**2))
        distance = float(torch.linalg.matrix_norm(m - eye).amax())
        if bool(info.any()) or not distance < float("inf"):
            break
        if distance < 1e-13 * a.shape[-1]:
            better: Tensor = x + _solve(x, a - x @ x)
            return better if bool(better.isfinite().all()) else x
    raise FastganError(
        "sqrtm: no principal square root to working precision: an eigenvalue is zero, negative or next to it; "
        "a covariance must be exactly symmetric"
    )


def _scale(m: Tensor) -> Tensor:
    """|det m|^(-1/d) [..., 1, 1]."""
    logarithm = torch.linalg.slogdet(m).logabsdet / m.shape[-1]
    inverse: Tensor = torch.exp(-logarithm)
    return inverse[..., None, None]


def _solve(x: Tensor, g: Tensor) -> Tensor:
    """Z with x Z + Z x = g."""
    if torch.equal(x, x.mT):
        values, vectors = torch.linalg.eigh(x)
        inside: Tensor = (vectors.mT @ g @ vectors) / (values[..., :, None] + values[..., None, :])
        return torch.matmul(vectors @ inside, vectors.mT)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    for _ in range(STEPS):  # Newton on the sign of [[x, g], [0, -x]]: x goes to the identity, g to 2 Z
        scale = _scale(x)
        inverse = torch.linalg.inv(x)
        g = 0.5 * (scale * g + inverse @ g @ inverse / scale)
        x = 0.5 * (scale * x + inverse / scale)
        if float(torch.linalg.matrix_norm(x - eye).amax()) < 1e-13 * x.shape[-1]:
            return 0.5 * g
    raise FastganError(
        "sqrtm: the Sylvester equation of its derivative does not converge; the matrix is close to singular"
    )
