"""Inputs that fastgan and its peers get alike, made by NumPy from seeds: for tools/parity.py and its tests."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(seed)))


def features(seed: int, n: int, d: int, dtype: str = "float32") -> Array:
    """[n, d], positive, with a decaying spectrum and a mean, as a network's pooled features have.

    Sets of different seeds share their directions, so that their samples are near each other.
    """
    directions = generator(77, d).standard_normal((12, d))
    rng = generator(seed, n, d)
    weights = rng.standard_normal((n, 12)) * np.linspace(1, 0.1, 12) + 0.2 * seed
    return np.asarray(0.35 * np.exp(0.12 * (weights @ directions) + 0.2 * rng.standard_normal((n, d)))).astype(dtype)


def logits(seed: int, n: int, classes: int) -> Array:
    return generator(seed, n, classes).standard_normal((n, classes)).astype("float32") * 3


def images(seed: int, n: int, height: int, width: int) -> Array:
    """[n, 3, height, width] uint8: waves and noise."""
    rng = generator(seed, n, height, width)
    y, x = np.mgrid[:height, :width]
    angle, phase = rng.uniform(0.02, 0.3, (2, n, 3, 1, 1)), rng.uniform(0, 6, (n, 3, 1, 1))
    waves = np.sin(angle[0] * x + angle[1] * y + phase)
    return np.clip(128 + 90 * waves + 12 * rng.standard_normal(waves.shape), 0, 255).astype("uint8")


def disturbed(seed: int, clean: Array) -> Array:
    """The same images with noise and less contrast, uint8."""
    noise = generator(seed, *clean.shape).standard_normal(clean.shape) * 20
    return np.clip(20 + 0.8 * clean + noise, 0, 255).astype("uint8")


def label_maps(seed: int, n: int, size: int, classes: int) -> tuple[Array, Array]:
    """Two [n, size, size] label maps that agree in about 70% of the pixels; class 0 is rare, the last one absent."""
    rng = generator(seed, n, size, classes)
    real = rng.choice(classes - 1, (n, size, size), p=np.arange(1, classes) / np.arange(1, classes).sum())
    fake = np.where(rng.random(real.shape) < 0.65, real, rng.integers(classes - 1, size=real.shape))
    return fake, real


def scores(seed: int, n: int, mean: float) -> Array:
    return (generator(seed, n).standard_normal(n) * 2 + mean).astype("float32")
