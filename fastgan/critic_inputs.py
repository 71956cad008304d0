"""What `critic_backward` is given, checked: samples, labels, coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias

from torch import Tensor

from fastgan.errors import FastganError

Samples: TypeAlias = Tensor | tuple[Tensor, ...]


def is_asked(name: str, coefficient: float | Tensor) -> bool:
    """Whether the penalty's work is to be done; FastganError for what is no coefficient."""
    if isinstance(coefficient, Tensor):
        if coefficient.ndim != 0:
            raise FastganError(f"{name} must be a number or a 0-dim tensor, got {described(coefficient)}")
        return True
    if not 0 <= coefficient < math.inf:
        raise FastganError(f"{name} must be a finite number of 0 or more, got {coefficient}")
    return coefficient != 0


def parts_of(name: str, samples: Samples) -> list[Tensor]:
    """The tensors of one tensor or a tuple of them, checked for themselves."""
    parts = list(samples) if isinstance(samples, tuple) else [samples]
    if not parts or not all(isinstance(part, Tensor) and part.ndim > 0 for part in parts):
        raise FastganError(f"{name} must be a tensor [N, ...] or a tuple of them, got {described(samples)}")
    if len({len(part) for part in parts}) != 1 or len(parts[0]) == 0:
        raise FastganError(f"{name} must have the same N > 0 in all tensors, got {described(samples)}")
    if not any(part.is_floating_point() for part in parts):
        raise FastganError(
            f"{name} must be floating point, got {described(samples)}; bring uint8 images to [-1, 1] with x / 127.5 - 1"
        )
    return parts


def check_samples(reals: Sequence[Tensor], fakes: Sequence[Tensor], *, paired: bool) -> None:
    """real and fake against each other. paired: they must be equally many."""
    if [part.shape[1:] for part in reals] != [part.shape[1:] for part in fakes]:
        raise FastganError(f"real and fake differ in shape: {described(reals)} against {described(fakes)}")
    devices = sorted({str(part.device) for part in chain(reals, fakes)})
    if len(devices) > 1:
        raise FastganError(f"real and fake must be on one device, got {' and '.join(devices)}")
    if paired and len(reals[0]) != len(fakes[0]):
        raise FastganError(
            f"wgan_gp needs as many fake as real samples, got {len(reals[0])} real and {len(fakes[0])} fake"
        )


def check_per_sample(reals: int, fakes: int, real_labels: Tensor | None, fake_labels: Tensor | None,
                      epsilon: Tensor | None) -> None:  # fmt: skip
    """Labels and epsilon against the numbers of samples."""
    if (real_labels is None) != (fake_labels is None):
        raise FastganError("real_labels and fake_labels must be given both or neither")
    for name, tensor, count in (
        ("real_labels", real_labels, reals),
        ("fake_labels", fake_labels, fakes),
    ):
        if tensor is not None and tensor.shape[:1] != (count,):
            raise FastganError(f"{name} must be [{count}], one per sample, got {list(tensor.shape)}")
    if epsilon is not None and epsilon.shape != (reals,):
        raise FastganError(f"epsilon must be [{reals}], one per sample, got {list(epsilon.shape)}")


def described(value: object) -> str:
    """`torch.float32 [8, 3, 32, 32]`, comma-separated for several."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(described, value)) or "nothing"
    return type(value).__name__
