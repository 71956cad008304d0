"""Precision, recall, density and coverage: exactly the decisions of fp64, whatever the data, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parity_inputs import features
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.kernels import close_pairs, fixed_point
from fastgan.metrics import density_coverage, neighbours, prdc, precision_recall
from fastgan.metrics.neighbours import Balls, Rule, balls

Array = np.ndarray[Any, Any]
KINDS = """plain, far from the origin, one far sample, copies of real samples, equal samples, collapsed, a grid,
sorted clusters, near clusters, two far samples, float64, float16, tiny""".replace("\n", " ").split(", ")
RULES = [Rule(3, True), Rule(5, False), Rule(1, False)]


def brute(real: Array, fake: Array, rule: Rule) -> tuple[Array, Array, Array]:
    """From all differences in fp64."""
    x, y = torch.from_numpy(real).double(), torch.from_numpy(fake).double()

    def between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    def radii(a: torch.Tensor) -> torch.Tensor:
        return between(a, a).fill_diagonal_(torch.inf).kthvalue(rule.k).values

    def inside(distance: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        return distance <= radius if rule.inclusive else distance < radius

    across = between(x, y)
    in_real, in_fake = inside(across, radii(x)[:, None]), inside(across, radii(y))
    return in_real.sum(0).numpy(), in_fake.sum(1).numpy(), in_real.any(1).numpy()


def same(found: Balls, want: tuple[Array, Array, Array]) -> None:
    for got, expected in zip((found.around_fake, found.around_real, found.covered), want, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)


def sets(kind: str) -> tuple[Array, Array]:
    real, fake = features(1, 230, 24), features(2, 190, 24)
    if kind == "far from the origin":  # fp32 resolves 1e-3 there, and distances are about 1
        return real + 1e4, fake + 1e4
    if kind == "one far sample":  # its norm makes the bound on the error large for all
        real[3] *= 300
    if kind == "two far samples":  # beside which the squares of others are not normal numbers
        for z in (real, fake):
            z *= 1e-18
            z[:2], z[:2, 0] = 0, (1, -1)
    if kind == "copies of real samples":  # distances that equal radii
        fake[:100] = real[:100]
    if kind == "equal samples":
        real[:9], fake[:50] = real[0], fake[0]
    if kind == "collapsed":
        return np.repeat(real[:1], 230, 0), np.repeat(real[:1], 190, 0)
    if kind == "a grid":  # many equal distances
        return np.round(real * 2), np.round(fake * 2)
    if kind in ("sorted clusters", "near clusters"):
        apart = 30 if kind == "sorted clusters" else 6
        real += apart * (np.arange(230)[:, None] > 120)
        fake += apart * (np.arange(190)[:, None] > 40)
    if kind in ("float64", "float16"):
        return real.astype(kind), fake.astype(kind)
    if kind == "tiny":
        return (real * 1e-25).astype("float32"), (fake * 1e-25).astype("float32")
    return real, fake


def by(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In integers, or in the library's tiles of so many rows, however few the samples."""
    whole = products == "integers"
    if whole and not fixed_point.is_here("close_pairs", 24, torch.device("cpu")):
        pytest.skip("no native part, or not for this CPU")
    monkeypatch.setattr(close_pairs, "is_for", lambda *_: whole)
    if not whole:
        monkeypatch.setattr(neighbours, "TILE", int(products))
        monkeypatch.setattr(neighbours.spans, "__defaults__", (int(products),))


@pytest.mark.parametrize("products", ["integers", "37", "1024"])
@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_those_of_fp64(kind: str, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by(products, monkeypatch)
    monkeypatch.setattr(neighbours, "PAIRS", 1000)
    real, fake = sets(kind)
    for rule, found in zip(RULES, balls(torch.from_numpy(real), torch.from_numpy(fake), RULES), strict=True):
        same(found, brute(real, fake, rule))


@pytest.mark.parametrize("kind", KINDS)
def test_how_fine_it_has_to_be(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where clusters or many equal distances leave too much open, and nowhere else."""
    by("integers", monkeypatch)
    finest = {"near clusters": "fp32", "sorted clusters": "fp64", "a grid": "fp64", "two far samples": "fp64"}.get(
        kind, "integers"
    )
    real, fake = (torch.from_numpy(z) for z in sets(kind))
    seen, floating = {"integers"}, neighbours.floating

    def noted(given: torch.Tensor, centre: torch.Tensor, scale: float, dtype: torch.dtype) -> neighbours.Floating:
        seen.add("fp64" if dtype == torch.float64 else "fp32")
        return floating(given, centre, scale, dtype)

    monkeypatch.setattr(neighbours, "floating", noted)
    balls(real, fake, RULES)
    assert max(seen, key=["integers", "fp32", "fp64"].index) == finest


@pytest.mark.parametrize(("limit", "value"), [("RULES", 0), ("ROOM", (0, 0))])
def test_too_much_for_integers_is_decided_in_fp32(limit: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by("integers", monkeypatch)
    monkeypatch.setattr(close_pairs, limit, value)
    real, fake = sets("copies of real samples")
    (found,) = balls(torch.from_numpy(real), torch.from_numpy(fake), RULES[:1])
    same(found, brute(real, fake, RULES[0]))


def test_when_products_are_less_exact_than_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with TF32: the distances come from fp64 then."""
    real, fake = sets("plain")
    monkeypatch.setattr(neighbours, "reliable", lambda _: False)
    x, y = torch.from_numpy(real), torch.from_numpy(fake)
    by("integers", monkeypatch)
    assert neighbours.finer(*neighbours.prepare(x, y))[1].most_exact
    by("1024", monkeypatch)
    assert neighbours.prepare(x, y)[1].most_exact
    (found,) = balls(x, y, RULES[:1])
    same(found, brute(real, fake, RULES[0]))


def test_far_from_the_origin_fp32_resolves_distances_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    by("1024", monkeypatch)
    x = torch.from_numpy(sets("plain")[0])
    near, far = (neighbours.prepare(z, z)[0] for z in (x, x.double() + 1e6))
    assert not far.most_exact
    np.testing.assert_allclose(far.coarse.squares.numpy(), near.coarse.squares.numpy(), rtol=1e-4)


@pytest.mark.parametrize("products", ["integers", "128"])
def test_memory_does_not_grow_with_the_number_of_pairs(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by(products, monkeypatch)
    monkeypatch.setattr(close_pairs, "ROOM", (50_000, 0))
    x, y = torch.from_numpy(features(1, 2000, 8)), torch.from_numpy(features(2, 1500, 8))
    with Largest() as seen:
        balls(x, y, RULES)
    most = 3 * 50_000 if products == "integers" else 2000 * (5 + neighbours.SPARE) + 128 * 128
    assert 128 * 128 <= seen.largest <= most


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.is_contiguous():
                self.largest = max(self.largest, value.numel())
        return out


def test_less_exact_products_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    by("1024", monkeypatch)
    x = torch.from_numpy(sets("plain")[0])
    points = neighbours.prepare(x, x)[0].coarse
    assert isinstance(points, neighbours.Floating)
    assert points.short.dtype == torch.float32
    assert neighbours.reliable(points)
    product = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not neighbours.reliable(points)


@pytest.mark.parametrize("products", ["integers", "1024"])
def test_nearest_neighbours_of_nearly_equal_distance(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All differ by less than fp32 resolves, so that the k-th is among those that were not kept, too."""
    by(products, monkeypatch)
    angle = torch.linspace(0, 6.28, 101, dtype=torch.float64)[:-1]
    circle = torch.stack((angle.cos(), angle.sin()), 1) * (
        1 + 1e-10 * torch.arange(100.0, dtype=torch.float64)[:, None]
    )
    real = torch.cat((circle, torch.zeros(1, 2, dtype=torch.float64)))
    points = neighbours.prepare(real, real)[0]
    want = torch.cdist(real, real, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).sort(1).values
    for k, radius in zip((1, 3, 50), neighbours.nearest(points, [1, 3, 50]), strict=True):
        np.testing.assert_allclose(radius.numpy(), want[:, k - 1].numpy(), rtol=1e-15)


def test_both_at_once() -> None:
    real, fake = sets("plain")
    together = prdc(real, fake)
    apart = precision_recall(real, fake), density_coverage(real, fake)
    assert [dict(r.values) for r in together] == [dict(r.values) for r in apart]
    assert [r.protocol for r in together] == [r.protocol for r in apart]
    assert (together[0].protocol.k, together[0].protocol.inclusive) == (3, True)
    assert (together[1].protocol.k, together[1].protocol.inclusive) == (5, False)


def test_definitions_on_a_line() -> None:
    """Real at 0 1 2 3 and 10, k = 1: radii 1 1 1 1 7. Fake at 0.5, 4, 100, 101: radii 3.5 3.5 1 1."""
    real, fake = np.array([[0.0], [1], [2], [3], [10]]), np.array([[0.5], [4], [100], [101]])
    got = precision_recall(real, fake, k=1)
    assert got.values == pytest.approx({"precision": 0.5, "recall": 0.8, "f_score": 2 * 0.5 * 0.8 / 1.3})
    got = precision_recall(real, fake, k=1, inclusive=False)
    assert got.values["precision"] == 0.5  # 4 is inside the ball of 10, on the border of that of 3
    got = density_coverage(real, fake, k=1)
    assert got.values == pytest.approx({"density": 3 / 4, "coverage": 3 / 5})
    got = density_coverage(real, fake, k=1, inclusive=True)
    assert got.values == pytest.approx({"density": 4 / 4, "coverage": 4 / 5})


def test_borders() -> None:
    """Notes of duplicates: k + 1 equal real samples have balls of radius 0, and only `<=` finds that point in them."""
    real = np.concatenate((np.zeros((4, 3)), 5 + features(1, 50, 3)))
    fake = np.concatenate((np.zeros((30, 3)), 90 + features(2, 30, 3)))
    assert precision_recall(real, fake, k=3, inclusive=True).value == 0.5
    assert precision_recall(real, fake, k=3, inclusive=False).value == 0.0
