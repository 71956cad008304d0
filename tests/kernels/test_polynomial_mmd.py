"""Maximum mean discrepancy in fixed point: against fp64, its own estimate of its error, every size around a panel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.kernels import polynomial_mmd as op
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.polynomial_mmd import CASES, Kernel, fixed_point, native, polynomial_mmd, reference

pytestmark = pytest.mark.skipif(
    EXTENSION.module is None or not EXTENSION.module.polynomial_mmd_here(), reason="no native part, or not for this CPU"
)


def samples(n: int, d: int, seed: int = 0, spread: float = 0.4) -> Tensor:
    """[n, d] positive, with a mean, as a network's features are."""
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return 0.35 * (spread * noise + 0.02 * seed).exp()


def members(n: int, subsets: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(subsets)])


def both_ways(
    x: Tensor, y: Tensor, first: Tensor, second: Tensor, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """In fixed point, however coarse, and in fp64."""
    monkeypatch.setattr(op, "PRECISION", 1e30)
    fixed = fixed_point(x, y, kernel, *first.shape)
    assert fixed is not None
    return native(fixed, first, second, kernel), reference(x.double(), y.double(), first, second, kernel)


def bound(x: Tensor, y: Tensor, size: int, kernel: Kernel) -> float:
    """Six of its own deviations, and what fp32 leaves of sums of `size` roundings."""
    every = torch.cat((x, y)).double()
    centre = every.mean(0)
    apart = every - centre
    norms = apart.square().sum(1)
    unit = max(float(apart.abs().max()) / op.LARGEST, float(norms.max().sqrt()) / op.LONGEST)
    base = abs(kernel.coef0) + abs(kernel.gamma) * float(every.square().sum(1).max())
    deviation = op.rounding(unit, float(norms.mean().sqrt()), kernel, size) * base ** (kernel.degree - 1)
    return 6 * deviation + 1e-7 * base**kernel.degree / size


@pytest.mark.parametrize("case", [case for case, (n, *_) in CASES.items() if n < 1000])
def test_cases(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, d, subsets, size = CASES[case]
    kernel, x, y = Kernel(3, 1 / d, 1.0), samples(n, d), samples(n - 1 if size < n else n, d, 1)
    first, second = members(len(x), subsets, size), members(len(y), subsets, size, 1)
    made, exact = both_ways(x, y, first, second, kernel, monkeypatch)
    assert (made - exact).abs().max() < bound(x, y, size, kernel)
    assert exact.abs().min() > 100 * bound(x, y, size, kernel)  # so that the bound tells something


@pytest.mark.parametrize("size", [2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 80])
@pytest.mark.parametrize("d", [1, 4, 15, 16, 17, 127, 128, 129, 300])
def test_every_size_around_a_panel_and_a_block(size: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x, y = Kernel(3, 1 / d, 1.0), samples(90, d), samples(85, d, 5)
    made, exact = both_ways(x, y, members(90, 3, size), members(85, 3, size, 1), kernel, monkeypatch)
    assert (made - exact).abs().max() < bound(x, y, size, kernel)


@pytest.mark.parametrize("kernel", [Kernel(1, 0.01, 1.0), Kernel(2, 0.1, 0.0), Kernel(5, -0.02, 1.5)], ids=str)
def test_other_kernels(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples(200, 40), samples(200, 40, 3)
    made, exact = both_ways(x, y, members(200, 4, 120), members(200, 4, 120, 1), kernel, monkeypatch)
    assert (made - exact).abs().max() < bound(x, y, 120, kernel)


def test_integers_have_no_error() -> None:
    """Samples that are integers already, and so large that sums of products pass 32 bits on the way."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-7000, 7001, (48, 32), generator=generator).float() for _ in range(2))
    x, y = (torch.cat((z, -z)) for z in (x, y))  # about zero
    x[0], x[48] = op.LARGEST * torch.eye(32)[0], -op.LARGEST * torch.eye(32)[0]  # so that the unit is one
    kernel = Kernel(1, 2.0**-20, 0.0)
    norm = float(torch.cat((x, y)).norm(dim=1).max())
    assert norm < op.LONGEST
    assert norm**2 > 2**29
    everyone = torch.arange(96)[None]
    fixed = fixed_point(x, y, Kernel(1, 1e-12, 1.0), 1, 96)
    assert fixed is not None
    assert fixed.unit == 1.0
    assert torch.equal(fixed.values[0][:, :32].float(), x)
    made = native(fixed, everyone, everyone, kernel)
    exact = reference(x.double(), y.double(), everyone, everyone, kernel)
    assert float(made) == pytest.approx(float(exact), abs=1e-6 * norm**2 * kernel.gamma / 96)


def test_the_same_by_any_number_of_threads() -> None:
    x, y, kernel = samples(300, 64), samples(300, 64, 2), Kernel(3, 1 / 64, 1.0)
    first, second = members(300, 9, 200), members(300, 9, 200, 1)
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            fixed = fixed_point(x, y, kernel, 9, 10**6)
            assert fixed is not None
            made.append(native(fixed, first, second, kernel))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is called, in a list that grows."""
    called: list[str] = []
    for name in ("native", "all_pairs", "one_subset"):
        function = getattr(op, name)
        monkeypatch.setattr(op, name, lambda *a, f=function, n=name: (called.append(n), f(*a))[1])
    return called


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed point for many samples of fp32; the library for fp64, for few or far ones, and where pairs are shared."""
    called, kernel = ways(monkeypatch), Kernel(3, 1 / 256, 1.0)
    x, y = samples(4000, 256), samples(4000, 256, 1)
    first, second = members(4000, 4, 1000), members(4000, 4, 1000, 1)
    made = polynomial_mmd(x, y, first, second, kernel)
    assert called == ["native"]
    exact = polynomial_mmd(x.double(), y.double(), first, second, kernel)
    assert set(called) == {"native", "one_subset"}
    assert (made - exact).abs().max() < 6 * op.PRECISION * 2 * 8
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
