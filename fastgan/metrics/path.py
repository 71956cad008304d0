"""Perceptual path length (Karras et al. 2019): how much images change per step in the latent space, squared.

    PPL = mean of d(g(z_t), g(z_{t+epsilon})) / epsilon²,   z_t between two random latents

where d is a perceptual distance such as LPIPS, which behaves as a square for small steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics.checks import at_least_one, seed_of, source_name
from fastgan.metrics.result import Result

INTERPOLATIONS = ("lerp", "slerp")
SAMPLINGS = ("end", "full")


@dataclass(frozen=True)
class PathProtocol:
    """The defaults are stylegan3's, with a `mapping` for its space W.

    sampling: t = 0 ("end") or uniform in [0, 1) ("full");  size: images above it are reduced to it by area;
    quantise: to uint8 before the distance, which multiplies the result;  low, high: percentiles beyond which distances
    are left out, the bounds themselves being distances (next lower, next higher).
    """

    distance: str
    latents: int
    samples: int
    epsilon: float
    space: str
    interpolation: str
    sampling: str
    size: int | None
    quantise: bool
    low: float
    high: float
    seed: int


def path_length(
    generate: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    latents: int,
    *,
    mapping: Callable[[Tensor], Tensor] | None = None,
    samples: int = 50_000,
    epsilon: float = 1e-4,
    interpolation: str = "lerp",
    sampling: str = "end",
    size: int | None = 256,
    quantise: bool = False,
    low: float = 1.0,
    high: float = 99.0,
    seed: int = 0,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Result:
    """generate: latents [n, ...] (those of `mapping`, where given) -> images [n, C, H, W] in [-1, 1]; the same latent
    must give the same image, so noise inputs have to be fixed. distance: two such batches -> [n]. latents: size of z.

    values: std of the distances that count, and the share that does. Latents are interpolated after the mapping.
    """
    at_least_one(latents=latents, samples=samples, batch_size=batch_size)
    for name, value, known in (("interpolation", interpolation, INTERPOLATIONS), ("sampling", sampling, SAMPLINGS)):
        if value not in known:
            raise FastganError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
    if not epsilon > 0 or not 0 <= low < high <= 100:
        raise FastganError(
            f"path_length: expected epsilon > 0 and 0 <= low < high <= 100, got {epsilon}, {low}, {high}"
        )
    draw = torch.Generator().manual_seed(seed_of(seed))
    between = lerp if interpolation == "lerp" else slerp
    lengths = []
    for start in range(0, samples, batch_size):
        count = min(batch_size, samples - start)
        ends = torch.randn(2 * count, latents, generator=draw).to(device)
        t = torch.rand(count, generator=draw).to(device) if sampling == "full" else torch.zeros(count, device=device)
        with torch.no_grad():
            first, second = (ends if mapping is None else mapping(ends)).chunk(2)
            points = torch.cat((between(first, second, t), between(first, second, t + epsilon)))
            near, far = prepared(generate(points), size, quantise).chunk(2)
            lengths.append(checked(distance(near, far), count) / epsilon**2)
    found = torch.cat(lengths).cpu().numpy()
    bounds = np.percentile(found, low, method="lower"), np.percentile(found, high, method="higher")
    kept = found[(found >= bounds[0]) & (found <= bounds[1])]
    space = "z" if mapping is None else "w"
    protocol = PathProtocol(
        source_name(distance),
        latents,
        samples,
        epsilon,
        space,
        interpolation,
        sampling,
        size,
        quantise,
        low,
        high,
        seed,
    )
    values = {"std": float(kept.std()), "kept": len(kept) / len(found)}
    warnings = [] if samples >= 10_000 else [f"{samples:,} paths, fewer than 10,000: the mean is uncertain"]
    return Result("path_length", float(kept.mean()), protocol, values, 0, samples, tuple(warnings))


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """a, b: [n, ...], t: [n]"""
    return torch.lerp(a, b, t.view(-1, *[1] * (a.dim() - 1)).to(a.dtype))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Along the great circle between the directions of a and b, on the unit sphere of the last dimension."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    angle = (t.view(-1, *[1] * (a.dim() - 1))) * (a * b).sum(-1, keepdim=True).clamp(-1, 1).arccos()
    across = b - (a * b).sum(-1, keepdim=True) * a
    return F.normalize(a * angle.cos() + F.normalize(across, dim=-1) * angle.sin(), dim=-1)


def prepared(images: Any, size: int | None, quantise: bool) -> Tensor:
    """Images of the generator as the distance gets them."""
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        what = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise FastganError(f"generate: expected images [n, C, H, W] of floats in [-1, 1], got {what}")
    shown: Tensor = images
    if size is not None and shown.shape[-1] > size:
        factor, rest = divmod(shown.shape[-1], size)
        if rest or shown.shape[-1] != shown.shape[-2]:
            raise FastganError(f"size: expected a divisor of the images' {list(shown.shape[-2:])}, got {size}")
        shown = F.avg_pool2d(shown, factor)
    return ((shown + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1 if quantise else shown


def checked(distances: Any, count: int) -> Tensor:
    """[n] of the perceptual network, fp64."""
    given: Tensor = torch.as_tensor(distances).double().flatten()
    if len(given) != count or not bool(given.isfinite().all()):
        raise FastganError(f"distance: expected {count} finite numbers, got {given.tolist()[:4]}... ({len(given)})")
    return given
