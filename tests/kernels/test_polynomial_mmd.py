"""Maximum mean discrepancy in fixed point: against fp64, its own estimate of its error, every size around a panel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.kernels import polynomial_mmd as op
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.fixed_point import BLOCK, LARGEST, LONGEST
from fastgan.kernels.polynomial_mmd import CASES, Kernel, fixed_point, native, polynomial_mmd, reference

pytestmark = pytest.mark.skipif(
    EXTENSION.module is None or not EXTENSION.module.fixed_point_here(), reason="no native part, or not for this CPU"
)


def samples(n: int, d: int, seed: int = 0, spread: float = 0.4) -> Tensor:
    """[n, d] positive, with a mean, as a network's features are."""
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return 0.35 * (spread * noise + 0.02 * seed).exp()


def members(n: int, subsets: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(subsets)])


def error(
    x: Tensor, y: Tensor, first: Tensor, second: Tensor, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, Tensor]:
    """The largest one in fixed point, however coarse, subset by subset and each pair once; and the result in fp64."""
    monkeypatch.setattr(op, "PRECISION", 1e30)
    fixed = fixed_point(x, y, kernel, *first.shape)
    assert fixed is not None
    exact = reference(x.double(), y.double(), first, second, kernel)
    made = torch.stack([native(fixed, first, second, kernel, shared) for shared in (False, True)])
    return float((made - exact).abs().max()), exact


def bound(x: Tensor, y: Tensor, size: int, kernel: Kernel) -> float:
    """Six of its own deviations, and what fp32 leaves of sums of `size` roundings."""
    every = torch.cat((x, y)).double()
    apart = every - (x.double().mean(0) + y.double().mean(0)) / 2
    norms = apart.square().sum(1)
    units = torch.maximum(apart.abs().amax(1) / LARGEST, norms.sqrt() / LONGEST)
    base = abs(kernel.coef0) + abs(kernel.gamma) * float(every.square().sum(1).max())
    typical = float(units.square().mean().sqrt()), float(norms.mean().sqrt())
    deviation = op.rounding(*typical, kernel, size) * base ** (kernel.degree - 1)
    return 6 * deviation + 1e-7 * base**kernel.degree / size


@pytest.mark.parametrize("case", [case for case, (n, *_) in CASES.items() if n < 1000])
def test_cases(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, d, subsets, size = CASES[case]
    kernel, x, y = Kernel(3, 1 / d, 1.0), samples(n, d), samples(n - 1 if size < n else n, d, 1)
    first, second = members(len(x), subsets, size), members(len(y), subsets, size, 1)
    off, exact = error(x, y, first, second, kernel, monkeypatch)
    assert off < bound(x, y, size, kernel)
    assert exact.abs().min() > 100 * bound(x, y, size, kernel)  # so that the bound tells something


@pytest.mark.parametrize("size", [2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 193, 256, 257, 300, 350, 410, 512])
@pytest.mark.parametrize("d", [1, 15, 63, 64, 65, 200, 511, 513])
def test_every_size_around_a_panel_and_a_block(size: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x, y = Kernel(3, 1 / d, 1.0), samples(size + 10, d), samples(size + 5, d, 5)
    first, second = members(len(x), 3, size), members(len(y), 3, size, 1)
    assert error(x, y, first, second, kernel, monkeypatch)[0] < bound(x, y, size, kernel)


@pytest.mark.parametrize("kernel", [Kernel(1, 0.01, 1.0), Kernel(2, 0.1, 0.0), Kernel(5, -0.02, 1.5)], ids=str)
def test_other_kernels(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples(200, 40), samples(200, 40, 3)
    first, second = members(200, 4, 120), members(200, 4, 120, 1)
    assert error(x, y, first, second, kernel, monkeypatch)[0] < bound(x, y, 120, kernel)


def test_sides_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of different lengths, with samples that are in no subset and samples that are in many."""
    x, y, kernel = samples(2 * BLOCK + 300, 20), samples(BLOCK + 1, 20, 1), Kernel(3, 1 / 20, 1.0)
    first, second = members(len(x), 6, 500), members(len(y), 6, 500, 1)
    first[:4] = members(len(x) // 3, 4, 500, 2) + len(x) // 2
    assert error(x, y, first, second, kernel, monkeypatch)[0] < bound(x, y, 500, kernel)


def test_samples_of_very_different_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its unit: the short ones keep their precision beside long ones."""
    short, y, kernel = samples(300, 64), samples(300, 64, 1), Kernel(1, 1.0, 0.0)
    long = torch.cat((short * 1e4, -short * 1e4))  # whose mean is nothing
    few, others = members(300, 5, 200), members(300, 5, 200, 1)
    monkeypatch.setattr(op, "PRECISION", 1e30)
    fixed = fixed_point(torch.cat((short, long)), y, kernel, 5, 200)
    assert fixed is not None
    exact = reference(short.double(), y.double(), few, others, kernel)
    centre = (torch.cat((short, long)).mean(0) + y.mean(0)) / 2
    for shared in (False, True):
        off = (native(fixed, few, others, kernel, shared) - exact).abs().max()
        # Of products with the mean partner, which is far from these ones here, and of the products themselves.
        assert off < 6 * bound(short - centre, y - centre, 200, kernel)


def test_integers_have_no_error() -> None:
    """Samples that are integers already, many of the largest values: sums of products pass 32 bits on the way."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-LARGEST, LARGEST + 1, (200, 120), generator=generator).float() for _ in range(2))
    for z in (x, y):
        z[:100] = torch.where(z[:100] < 0, -LARGEST, LARGEST)
        z[:, 7] = LARGEST  # so that the units are one
    x, y = (torch.cat((z, -z)) for z in (x, y))  # about zero
    norm, kernel = float(x.norm(dim=1).max()), Kernel(1, 2.0**-20, 0.0)
    assert 2**30.8 < norm**2 < LONGEST**2
    everyone = torch.arange(400)[None]
    fixed = fixed_point(x, y, Kernel(1, 1e-12, 1.0), 1, 400)
    assert fixed is not None
    assert all((units == 1.0).all() for units in fixed.units)
    assert torch.equal(fixed.values[0][:, :120].float(), x)
    exact = reference(x.double(), y.double(), everyone, everyone, kernel)
    for shared in (False, True):
        made = native(fixed, everyone, everyone, kernel, shared)
        assert float(made) == pytest.approx(float(exact), abs=1e-6 * norm**2 * kernel.gamma / 400)


@pytest.mark.parametrize("shared", [False, True])
def test_the_same_by_any_number_of_threads(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "PRECISION", 1e30)
    x, y, kernel = samples(BLOCK + 300, 64), samples(BLOCK + 1, 64, 2), Kernel(3, 1 / 64, 1.0)
    first, second = members(len(x), 9, 200), members(len(y), 9, 200, 1)
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            fixed = fixed_point(x, y, kernel, 9, 200)
            assert fixed is not None
            made.append(native(fixed, first, second, kernel, shared))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is called, in a list that grows."""
    called: list[str] = []

    def noted(name: str, function: Callable[..., Tensor], *args: Any) -> Tensor:
        called.append(f"{name}, shared" if args[-1] is True else name)
        return function(*args)

    for name in ("native", "all_pairs", "one_subset"):
        monkeypatch.setattr(op, name, partial(noted, name, getattr(op, name)))
    return called


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed point for many samples of fp32; the library for fp64, for few or far ones, and for the same subsets."""
    called, kernel = ways(monkeypatch), Kernel(3, 1 / 256, 1.0)
    x, y = samples(4000, 256), samples(4000, 256, 1)
    first, second = members(4000, 4, 1000), members(4000, 4, 1000, 1)
    made = polynomial_mmd(x, y, first, second, kernel)
    assert called == ["native"]
    exact = polynomial_mmd(x.double(), y.double(), first, second, kernel)
    assert set(called) == {"native", "one_subset"}
    assert (made - exact).abs().max() < 6 * op.PRECISION * 2 * 8
    called.clear()
    many = members(3000, 12, 1000), members(3000, 12, 1000, 1)
    made = polynomial_mmd(x[:3000], y[:3000], *many, kernel)
    assert called == ["native, shared"]
    exact = reference(x[:3000].double(), y[:3000].double(), *many, kernel)
    assert (made - exact).abs().max() < 12**0.5 * 6 * op.PRECISION * 2 * 8
    called.clear()
    polynomial_mmd(x, y, first[:, :30], second[:, :30], kernel)
    far = x.clone()
    far[0] *= 300
    polynomial_mmd(far, y, first, second, kernel)
    polynomial_mmd(x * 1e25, y, first, second, kernel)  # squares of norms are beyond fp32
    assert set(called) == {"one_subset"}
    called.clear()
    polynomial_mmd(x[:1000], y[:1000], members(1000, 16, 1000), members(1000, 16, 1000), kernel)
    assert called == ["all_pairs"]
    called.clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)  # more than subsets
    polynomial_mmd(x, y, first, second, kernel)
    assert set(called) == {"one_subset"}


def test_equal_samples() -> None:
    """All the same: no unit to speak of, and nothing between the sets."""
    x = torch.full((1200, 20), 0.5)
    made = polynomial_mmd(x, x.clone(), members(1200, 4, 1000), members(1200, 4, 1000), Kernel(3, 1 / 20, 1.0))
    assert made.abs().max() < 1e-7


def test_inputs_are_left_alone() -> None:
    x, y = samples(1100, 64).T.contiguous().T, samples(1100, 64, 1)
    before = x.clone(), y.clone()
    polynomial_mmd(x, y, members(1100, 2, 1000), members(1100, 2, 1000), Kernel(3, 1 / 64, 1.0))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
