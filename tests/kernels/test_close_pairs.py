"""Close pairs in fixed point: against fp64 on the same integers, the bound on what they leave out, every size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.kernels import close_pairs as op
from fastgan.kernels import fixed_point
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.close_pairs import CASES, Bounded, bounded, nearest, within

here = pytest.mark.skipif(
    EXTENSION.module is None or not EXTENSION.module.fixed_point_here(), reason="no native part, or not for this CPU"
)
SIZES = [2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 193, 256, 257, 300, 410, 512]


def samples(n: int, d: int, seed: int = 0) -> Tensor:
    """[n, d] of norm 0.3 to 1, with a few directions that are longer than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.logspace(0, -1, d)
    return x / x.norm(dim=1, keepdim=True) * (0.3 + 0.7 * torch.rand(n, 1, generator=generator))


def made(*sets: Tensor) -> tuple[Bounded, ...]:
    return bounded(*(op.fixed_point(x.split(100), *x.shape) for x in sets))


def squared(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def least(x: Bounded, y: Bounded) -> Tensor:
    """[n, m] fp64, of the integers."""
    rows, columns = (z.fixed.values.double() * z.fixed.units.double()[:, None] for z in (x, y))
    return x.base.double()[:, None] + y.base.double() - 2 * rows @ columns.mT


def widths(x: Bounded, y: Bounded) -> Tensor:
    return 2 * (x.margin.double()[:, None] + y.margin.double())


def check_nearest(x: Bounded, count: int) -> None:
    want = least(x, x).fill_diagonal_(torch.inf)
    values, who = nearest(x, count)
    assert (values.diff(dim=1) >= 0).all()
    assert all(len(set(row)) == count for row in who.tolist())
    of_who = want.gather(1, who)
    assert (of_who - values.double()).abs().max() < 1e-6
    kept = want.sort(1).values[:, count - 1 : count]
    assert (of_who <= kept + 1e-6).all()


def borders(distances: Tensor, share: float, rules: int, dim: int) -> Tensor:
    """[rules, samples] that about that share is within."""
    counts = [max(1, round(share * distances.shape[dim] / (r + 1))) for r in range(rules)]
    return torch.stack([distances.kthvalue(count, dim).values for count in counts]).float()


def check_within(x: Bounded, y: Bounded, share: float, rules: int) -> None:
    """Balls with about that share of the others in them."""
    distances = least(x, y)
    x_border, y_border = (borders(distances, share, rules, dim) for dim in (1, 0))
    found = within(x, y, x_border, y_border)
    assert found is not None
    inside, (i, j, balls) = distances + widths(x, y), found.pairs.long().unbind(1)

    def check(bit: int, border: Tensor, counts: list[tuple[Tensor, int]]) -> None:
        """border: [n, 1] or [m];  counts: of those that are certain, along a dimension."""
        border = border.double()
        certain = inside < border
        # What lies this near a border is decided by what fp32 rounds, and may be on either side.
        near = torch.minimum((inside - border).abs(), (distances - border).abs()) < 1e-6
        for got, dim in counts:
            assert ((got - certain.sum(dim)).abs() <= near.sum(dim)).all()
        doubtful = torch.zeros_like(certain)
        doubtful[i, j] = (balls >> bit & 1).bool()
        assert ((doubtful == (~certain & (distances <= border))) | near).all()

    for r in range(rules):
        check(2 * r, x_border[r][:, None], [(found.around_y[r], 0), (found.inside_x[r], 1)])
        check(2 * r + 1, y_border[r], [(found.around_x[r], 1)])


@here
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", [1, 15, 64, 65, 200, 511])
def test_every_size_around_a_panel_and_a_block(n: int, d: int) -> None:
    x, y = made(samples(n, d), samples(n + 5, d, 1))
    check_nearest(x, min(n - 1, 9))
    check_within(x, y, 0.3, 2)
    check_within(y, x, 0.1, 1)


@here
def test_samples_by_columns() -> None:
    (by_rows,), (by_columns,) = made(samples(150, 40)), made(samples(150, 40).T.contiguous().T)
    assert torch.equal(by_rows.fixed.values, by_columns.fixed.values)
    assert torch.equal(by_rows.margin, by_columns.margin)


@here
def test_cases() -> None:
    n, m, d, rules = CASES["one block"]
    x, y = made(samples(n, d), samples(m, d, 1))
    check_nearest(x, 13)
    check_within(x, y, 0.02, rules)


@here
def test_sets_of_many_blocks() -> None:
    x, y = made(samples(fixed_point.BLOCK + 300, 20), samples(fixed_point.GROUP + 1, 20, 1))
    check_nearest(x, 40)
    check_within(x, y, 0.01, 2)
    check_within(y, x, 0.01, 2)


@here
@pytest.mark.parametrize("kind", ["plain", "one large feature", "lengths from 1e-4 to 1", "at the origin", "aligned"])
@pytest.mark.parametrize("d", [1, 30, 700])
def test_the_bound_holds(kind: str, d: int) -> None:
    """For any samples; and it is not so wide that nothing would be certain."""
    x, y = samples(120, d), samples(90, d, 1)
    if kind == "one large feature":  # so that the units are coarse for the others
        x[:, 0] = x[:, 0].sign()
        x /= x.norm(dim=1).max()
    if kind == "lengths from 1e-4 to 1":
        x = x * torch.logspace(-4, 0, 120)[:, None]
    if kind == "at the origin":
        x[:40], y[:20] = 0, 0
    if kind == "aligned":  # every feature rounds the same way
        fraction = 0.4999 / fixed_point.LARGEST
        x = torch.full((120, d), 0.5) + fraction * torch.linspace(-1, 1, 120)[:, None]
        x[:, 0], y = 1.0, x[:90].clone()
        x, y = (z / x.norm(dim=1).max() for z in (x, y))
    fixed = made(x, y)
    for a, of_a in zip((x, y), fixed, strict=True):
        for b, of_b in zip((x, y), fixed, strict=True):
            off = squared(a, b) - least(of_a, of_b)
            assert (off >= 0).all()
            assert (off <= widths(of_a, of_b)).all()
    squares = torch.cat([z.double().square().sum(1) for z in (x, y)])
    assert torch.cat([z.margin for z in fixed]).double().mean() < 4e-3 * squares.mean()


@here
def test_equal_ones_are_taken_in_order() -> None:
    (x,) = made(torch.full((70, 5), 0.25))
    who = nearest(x, 4)[1]
    assert who[0].tolist() == [1, 2, 3, 4]
    assert who[2].tolist() == [0, 1, 3, 4]
    assert who[69].tolist() == [0, 1, 2, 3]


@here
def test_the_same_by_any_number_of_threads() -> None:
    x, y = made(samples(fixed_point.BLOCK + 300, 64), samples(fixed_point.BLOCK + 1, 64, 2))
    some = borders(least(x, y), 0.002, 1, 1), borders(least(x, y), 0.002, 1, 0)
    threads, seen = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found = within(x, y, *some)
            assert found is not None
            pairs = sorted(found.pairs.tolist())
            seen.append((*nearest(x, 9), found.around_y, found.inside_x, found.around_x, torch.tensor(pairs)))
    finally:
        torch.set_num_threads(threads)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
    assert len(seen[0][-1]) > 100


@here
def test_more_open_pairs_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(samples(300, 20), samples(200, 20, 1))
    some = borders(least(x, y), 0.5, 1, 1), borders(least(x, y), 0.5, 1, 0)
    found = within(x, y, *some)
    assert found is not None
    count = len(found.pairs)
    assert count > 0
    monkeypatch.setattr(op, "ROOM", (count, 0))
    assert within(x, y, *some) is not None
    monkeypatch.setattr(op, "ROOM", (count - 1, 0))
    assert within(x, y, *some) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("d", [1, 15, 16, 17, 100])
def test_distances(d: int, dtype: torch.dtype) -> None:
    x, y = (100 + samples(n, d, n).double() for n in (40, 30))
    x, y = x.to(dtype).T.contiguous().T, y.to(dtype)
    generator = torch.Generator().manual_seed(0)
    i, j = (torch.randint(0, len(z), (500,), generator=generator) for z in (x, y))
    got = op.distances(x, i, y, j)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, squared(x, y).sqrt()[i, j], rtol=1e-14, atol=0)
    assert torch.equal(got, op.distances(y, j, x, i))
    torch.testing.assert_close(got, op.reference_distances(x, i, y, j, 3 * d), rtol=1e-14, atol=0)
    assert op.distances(x, i[:0], y, j[:0]).shape == (0,)


def test_long_samples_are_left_to_the_library() -> None:
    """Of those that all round up, products would not fit in 32 bits."""
    cpu = torch.device("cpu")
    for name in ("close_pairs", "polynomial_mmd"):
        assert not fixed_point.is_here(name, fixed_point.MOST_FEATURES + 1, cpu)
    longest = fixed_point.LONGEST + 0.5 * fixed_point.MOST_FEATURES**0.5
    assert longest**2 < 2**31


def test_few_samples_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "is_here", lambda *_: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    cpu = torch.device("cpu")
    assert op.is_for(10_000, 10_000, 2048, cpu)
    assert op.is_for(2000, 1793, 2048, cpu)
    assert not op.is_for(2000, 1792, 2048, cpu)
    assert not op.is_for(1792, 2000, 2048, cpu)
