"""Trace of the root of a product of covariances, and the principal square root of a matrix.

With S_i = F_i F_iᵀ for any factors F_i [d, r_i], and G = F_1ᵀ F_2 [r_1, r_2],

    tr (S_1 S_2)^(1/2) = |G|_* = sum of the singular values of G                                          (1)

so no root is ever formed, and G does not square the condition of the factors. F_i is the Cholesky factor, or, where a
covariance is singular to rounding, its eigenvectors times the roots of those eigenvalues that are above rounding, taken
from the correlation matrix so that scales of single features do not matter. |G|_* by one of three methods:

    cholesky_eigh   roots of the eigenvalues of F_1ᵀ S_2 F_1 = G Gᵀ: the fastest on a CPU, squares the condition of G
    cholesky_svd    singular values: exact to rounding, the slowest
    polar           ⟨U, G⟩ with the polar factor U of G by Polar Express (Amsel et al., arXiv:2505.16932): matrix
                    products only, a fixed number of steps, nothing read by the host: for GPUs
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError, suggest
from fastgan.kernels.arrays import fresh, tensor_of
from fastgan.kernels.symmetric_eigenvalues import symmetric_eigenvalues
from fastgan.kernels.symmetric_product import symmetric_product

Method = Literal["auto", "cholesky_eigh", "cholesky_svd", "polar"]
METHODS: tuple[str, ...] = get_args(Method)
EPS = torch.finfo(torch.float64).eps
TOLERANCE = 1e-8  # relative error estimate beyond which "auto" takes the singular values instead
PANEL = 128  # columns at a time of products that skip what triangles and symmetry make known
SMALLEST = 1e-9  # singular values that Polar Express brings to 1, relative to the largest


@dataclass(frozen=True)
class NuclearNorm:
    """value [...]: the sum of singular values; error [...]: an estimate of its absolute error; fp64."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class Factor:
    """S = matrix matrixᵀ to rounding. matrix: [..., d, r]; rank [...] <= r: columns before the last `rank` are zero."""

    matrix: Tensor
    rank: Tensor


def sqrtm_trace(cov1: Any, cov2: Any, method: Method = "auto") -> Any:
    """tr (cov1 cov2)^(1/2) of symmetric positive semi-definite matrices, in fp64.

    cov1, cov2: [..., d, d], NumPy arrays or torch tensors; leading dimensions broadcast. A float where there are none,
    else an array (a tensor where either is one) of their shape. "auto" is polar on a GPU and cholesky_eigh elsewhere,
    and cholesky_svd for those matrices where the error estimate exceeds 1e-8 of the result.
    """
    if method not in METHODS:
        raise FastganError(f"method {method!r} is unknown{suggest(str(method), METHODS)}")
    first, second = covariance("cov1", cov1), covariance("cov2", cov2)
    if first.shape[-1] != second.shape[-1]:
        raise FastganError(
            f"cov1 {list(first.shape)} and cov2 {list(second.shape)} must have the same size; "
            "were both computed from the features of the same network?"
        )
    if first.device != second.device:
        raise FastganError(f"cov1 is on {first.device} and cov2 on {second.device}; move one of them")
    try:
        torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise FastganError(
            f"leading dimensions of cov1 {list(first.shape)} and cov2 {list(second.shape)} do not broadcast; "
            "make them equal"
        ) from None
    # Products of extreme numbers would underflow or overflow where their roots do not.
    sizes = [size if size > 0 and not 1e-60 < size < 1e60 else 1.0 for size in map(largest_variance, (first, second))]
    first, second = (cov if size == 1 else cov / size for cov, size in zip((first, second), sizes, strict=True))
    value = root_norm(factor(first, "cov1"), second, "cov2", method).value * (sizes[0] ** 0.5 * sizes[1] ** 0.5)
    if not value.dim():
        return float(value)
    return value if isinstance(cov1, Tensor) or isinstance(cov2, Tensor) else value.numpy()


def root_norm(first: Factor, cov: Tensor, name: str = "covariance", method: Method = "auto") -> NuclearNorm:
    """tr (F_1 F_1ᵀ cov)^(1/2), with the method's error estimate. cov: [..., d, d], as `covariance` gives it.

    Where F_1 is the regular Cholesky factor, the eigenvalues of F_1ᵀ cov F_1 do without a factor of cov. They have its
    signs (Sylvester's law of inertia): where all are clearly positive, cov is positive definite. Else it is factored.
    """
    if method in ("auto", "cholesky_eigh") and not cov.is_cuda and int(first.rank.min()) == cov.shape[-1]:
        norm, certain = by_congruence(first.matrix, cov)
        if bool(certain.all()):
            return norm
    return product_norm(first, factor(cov, name), method)


def product_norm(first: Factor, second: Factor, method: Method = "auto", tolerance: float = TOLERANCE) -> NuclearNorm:
    """|F_1ᵀ F_2|_* of (1), with the method's error estimate; leading dimensions broadcast.

    tolerance: relative error estimate beyond which "auto" takes the singular values instead
    """
    return nuclear_norm(first.matrix.mT @ second.matrix, torch.minimum(first.rank, second.rank), method, tolerance)


def nuclear_norm(
    product: Tensor, rank: Tensor | None = None, method: Method = "auto", tolerance: float = TOLERANCE
) -> NuclearNorm:
    """product: [..., m, n], of rank at most `rank` [...]. Method and tolerance as in product_norm."""
    if method == "cholesky_svd":
        return by_singular_values(product)
    if method == "polar" or (method == "auto" and product.is_cuda):
        norm = by_polar_factor(product)
    else:
        norm = by_eigenvalues(product, rank)
    if method != "auto":
        return norm
    doubtful = ~(norm.error <= tolerance * norm.value)  # NaN is doubtful
    if bool(doubtful.any()):
        exact = by_singular_values(product[doubtful])
        value, error = norm.value.clone(), norm.error.clone()
        value[doubtful], error[doubtful] = exact.value, exact.error
        norm = NuclearNorm(value, error)
    return norm


def by_singular_values(product: Tensor) -> NuclearNorm:
    """product: [..., m, n]. The singular values are exact to a few EPS of the largest."""
    values = torch.linalg.svdvals(product)
    if not values.shape[-1]:
        return NuclearNorm(values.sum(-1), values.sum(-1))
    return NuclearNorm(values.sum(-1), EPS * values[..., 0] * math.sqrt(values.shape[-1]))


def by_eigenvalues(product: Tensor, rank: Tensor | None = None) -> NuclearNorm:
    """product: [..., m, n] of rank at most `rank` [...]: roots of the largest eigenvalues of the smaller of G Gᵀ, Gᵀ G.

    An eigenvalue is off by about EPS of the largest: its root by half that over itself, at random where it is far above
    that rounding, and by the root of the rounding, always upwards, where it is not.
    """
    wide = product if product.shape[-2] <= product.shape[-1] else product.mT
    size = wide.shape[-2]
    if not size:
        return by_singular_values(product)
    values = symmetric_eigenvalues(lower_gram(wide))
    counted = torch.ones_like(values, dtype=torch.bool)
    if rank is not None:
        counted = torch.arange(size, device=values.device) >= size - rank[..., None]
    rounding = (4 + size**0.5 / 4) * EPS * values[..., -1:].clamp_min(0)
    return sum_of_roots(values, counted, rounding)


def by_congruence(lower: Tensor, cov: Tensor) -> tuple[NuclearNorm, Tensor]:
    """From the eigenvalues of lowerᵀ cov lower; and [...] whether each is above its rounding and the sum precise.

    Its rounding is relative to |lower|² |cov|, which where the two hardly overlap is far above the largest eigenvalue.
    """
    values = symmetric_eigenvalues(congruence(lower, cov))
    rounding = 4 * EPS * torch.linalg.vector_norm(lower, dim=(-2, -1)).square() * symmetric_norm(cov)
    norm = sum_of_roots(values, torch.ones_like(values, dtype=torch.bool), rounding[..., None])
    return norm, (values[..., 0] > 4 * rounding) & (norm.error <= TOLERANCE * norm.value)


def congruence(lower: Tensor, cov: Tensor) -> Tensor:
    """[..., d, d] of which the lower triangle is that of lowerᵀ cov lower; above it some is and some is zero.

    lower: [..., d, d], lower triangular;  cov: [..., d, d], symmetric. About d³ operations, where two products of
    matrices have 4 d³: row i of the result needs only rows and columns from i on of cov lower, and of both factors.
    """
    shape = torch.broadcast_shapes(lower.shape, cov.shape)  # type: ignore[no-untyped-call]
    product, out = lower.new_empty(shape), lower.new_zeros(shape)
    panels = [slice(start, min(start + PANEL, shape[-1])) for start in range(0, shape[-1], PANEL)]
    for columns in panels:
        below = slice(columns.start, None)
        product[..., below, columns] = cov[..., below, below] @ lower[..., below, columns]
    for rows in panels:
        below, before = slice(rows.start, None), slice(0, rows.stop)
        out[..., rows, before] = lower[..., below, rows].mT @ product[..., below, before]
    return out


def lower_gram(a: Tensor) -> Tensor:
    """[..., m, m] of which the lower triangle is that of a aᵀ; above it some is and some is zero. a: [..., m, n]"""
    out = fresh((*a.shape[:-1], a.shape[-2]), a.dtype, a.device).zero_()
    for start in range(0, a.shape[-2], PANEL):
        stop = start + PANEL
        out[..., start:stop, :stop] = a[..., start:stop, :] @ a[..., :stop, :].mT
    return out


def symmetric_norm(matrix: Tensor) -> Tensor:
    """[...] at least the largest absolute eigenvalue of each [..., d, d]: its Frobenius norm."""
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=(-2, -1))
    return norm


def sum_of_roots(values: Tensor, counted: Tensor, rounding: Tensor) -> NuclearNorm:
    """values, counted: [..., n];  rounding: [..., 1], of each value. Negative ones count as zero."""
    roots = values.clamp_min(0).sqrt()
    resolved = values > 4 * rounding
    scatter = torch.where(counted & resolved, rounding / (2 * roots), 0.0).square().sum(-1).sqrt()
    bias = torch.where(counted & ~resolved, rounding.sqrt(), 0.0).sum(-1)
    return NuclearNorm(torch.where(counted, roots, 0.0).sum(-1), scatter.nan_to_num() + bias)


@functools.cache
def polar_schedule(smallest: float = SMALLEST) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) per step: the odd polynomial a x + b x³ + c x⁵ nearest to 1 on [l, u]; it maps that to [l', 2 - l']."""
    low, high = smallest, 1.0
    steps: list[tuple[float, float, float]] = []
    while 1 - low > 1e-15 and len(steps) < 40:
        a, b, c = nearest_quintic(low, high)
        steps.append((a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return tuple(steps)


def nearest_quintic(low: float, high: float) -> tuple[float, float, float]:
    """Remez: the error of the best a x + b x³ + c x⁵ ~ 1 alternates in sign at low < q < r < high."""
    if low / high >= 1 - 5e-6:  # the limit: Taylor's polynomial at 1
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    q, r, error = (3 * low + high) / 4, (low + 3 * high) / 4, math.inf
    for _ in range(100):
        rows = [(x, x**3, x**5, sign) for x, sign in ((low, 1.0), (q, -1.0), (r, 1.0), (high, -1.0))]
        a, b, c, new = (float(v) for v in np.linalg.solve(np.array(rows), np.ones(4)))
        if abs(new - error) < 1e-15:
            break
        error, root = new, math.sqrt(9 * b * b - 20 * a * c)
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def by_polar_factor(product: Tensor) -> NuclearNorm:
    """product: [..., m, n]. Matrix products only, the same ones for any values: it captures into a CUDA graph.

    U maximises ⟨U, G⟩ over contractions, so that errors in U count in second order only. The estimate is the gain of
    one more Newton-Schulz step, ⟨G, X (I - Xᵀ X)⟩ / 2, plus what singular values below SMALLEST can hold: such an s
    has come to x = slope * s / norm < 1, so sum s (1 - x) <= norm / slope * sum x (1 - x²), bounded by Cauchy-Schwarz.
    """
    tall = product if product.shape[-2] >= product.shape[-1] else product.mT
    absolute = tall.abs()
    if not absolute.numel():
        return by_singular_values(product)
    bound = (absolute.sum(-1).amax(-1) * absolute.sum(-2).amax(-1)).sqrt()
    norm = torch.minimum(torch.linalg.matrix_norm(tall), bound)  # >= the largest singular value
    x = tall / torch.where(norm > 0, norm, 1.0)[..., None, None]
    slope = 1.0
    for a, b, c in polar_schedule():
        gram = symmetric_product(x)
        x = x @ symmetric_product(gram, gram, square=c, linear=b, constant=a)
        slope *= a
    gram = symmetric_product(x)
    value = (x * tall).sum((-2, -1))
    gain = 0.5 * (value - ((x @ gram) * tall).sum((-2, -1))).clamp_min(0)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    small = (trace - gram.square().sum((-2, -1))).clamp_min(0)
    missing = (gram.shape[-1] - trace).clamp_min(0)
    return NuclearNorm(value, gain + norm / slope * (small * missing).sqrt())


def covariance(name: str, value: Any) -> Tensor:
    """`value` [..., d, d] as an fp64 tensor that is exactly symmetric; refuses what cannot be a covariance."""
    given = tensor_of(name, value)
    if given.is_complex() or given.dim() < 2 or given.shape[-1] != given.shape[-2] or not given.shape[-1]:
        raise FastganError(f"{name}: expected real square matrices [..., d, d], got {given.dtype} {list(given.shape)}")
    matrix = given.double()
    zero = matrix.new_zeros(())
    lowest = matrix.diagonal(dim1=-2, dim2=-1).amin() if matrix.numel() else zero
    largest = torch.maximum(*(v.abs() for v in torch.aminmax(matrix))) if matrix.numel() else zero
    skew = asymmetry_of(matrix) if matrix.numel() else zero
    low, asymmetry, size = torch.stack((lowest, skew, largest)).tolist()  # the only read of the host here
    if not math.isfinite(size):
        raise FastganError(
            f"{name}: expected finite values, got NaN or infinity; check the features that it was made of"
        )
    if asymmetry > slack(given) * size:
        raise FastganError(
            f"{name}: expected a symmetric matrix, got entries that differ from their mirror image by {asymmetry:.3g} "
            f"(largest entry {size:.3g}); pass a covariance such as numpy.cov(features, rowvar=False)"
        )
    if low < 0:
        raise FastganError(f"{name}: expected variances >= 0 on the diagonal, got {low:.3g}")
    return (matrix + matrix.mT) / 2 if asymmetry else matrix


def largest_variance(cov: Tensor) -> float:
    """On the diagonals of [..., d, d]: the largest entry of any that is positive semi-definite."""
    return float(cov.diagonal(dim1=-2, dim2=-1).amax()) if cov.numel() else 0.0


def asymmetry_of(matrix: Tensor) -> Tensor:
    """Largest |a_ij - a_ji|, tile by tile: whole temporaries would cost more than the Cholesky factor."""
    spans = [slice(start, start + 2 * PANEL) for start in range(0, matrix.shape[-1], 2 * PANEL)]
    return torch.stack(
        [(matrix[..., i, j] - matrix[..., j, i].mT).abs_().amax() for n, i in enumerate(spans) for j in spans[: n + 1]]
    ).amax()


def slack(given: Tensor) -> float:
    """Relative asymmetry, or negative eigenvalue, that rounding in the given type can cause."""
    return 1e-6 if given.dtype == torch.float64 or not given.is_floating_point() else 1e-3


def factor(cov: Tensor, name: str = "covariance") -> Factor:
    """cov: [..., d, d] fp64, symmetric. Its Cholesky factor, or a truncated eigenvector factor where it is singular."""
    d = cov.shape[-1]
    lower, info = torch.linalg.cholesky_ex(cov)
    pivots = lower.diagonal(dim1=-2, dim2=-1).square() / cov.diagonal(dim1=-2, dim2=-1)
    regular = (info == 0) & (pivots.amin(-1) > 4 * d * EPS)  # NaN is not regular; a smaller pivot may be rounding alone
    rank = torch.full_like(info, d, dtype=torch.long)
    if bool(regular.all()):
        return Factor(lower, rank)
    roots, ranks = eigen_factor(cov[~regular], name)
    lower[~regular], rank[~regular] = roots, ranks
    return Factor(lower[..., d - int(rank.max()) :], rank) if not bool(regular.any()) else Factor(lower, rank)


def eigen_factor(cov: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """cov: [b, d, d]. (F [b, d, d], rank [b]) with cov = F Fᵀ, where eigenvalues that are rounding alone count as zero.

    They are those of the correlation matrix, below the rounding of its largest or twice the size of its most negative.
    """
    d = cov.shape[-1]
    scale = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    divisor = torch.where(scale > 0, scale, 1.0)
    values, vectors = torch.linalg.eigh(cov / divisor[..., :, None] / divisor[..., None, :])
    lowest, largest = values[..., :1], values[..., -1:]
    if bool((lowest < -1e-5 * largest).any()):  # a covariance accumulated in fp32 has some of -1e-6
        worst = float((lowest / largest).amin())
        raise FastganError(
            f"{name}: expected a positive semi-definite matrix, got one whose correlation matrix has the "
            f"eigenvalue {worst:.3g} times its largest; check that it is the covariance of features"
        )
    rounding = torch.maximum(4 * math.sqrt(d) * EPS * largest, -2 * lowest)
    kept = values > rounding
    roots = torch.where(kept, values, 0.0).sqrt()
    return divisor[..., :, None] * vectors * roots[..., None, :], kept.sum(-1)
