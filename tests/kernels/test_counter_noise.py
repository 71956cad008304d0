"""counter_noise: known answers, one result on every device and in every batch, and the statistics of what comes out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels import counter_noise
from fastgan.kernels.counter_noise import CASES, integers, normal, philox4x32_10, uniform

KINDS = ("uniform", "uniform64", "normal", "normal64", "integers")


def draw(kind: str, seed: int, index: Tensor, size: tuple[int, ...], stream: int = 0) -> Tensor:
    if kind == "integers":
        return integers(seed, index, size, high=1000, stream=stream)
    function = uniform if kind.startswith("uniform") else normal
    return function(seed, index, size, stream=stream, dtype=torch.float64 if kind.endswith("64") else torch.float32)


def bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().view(torch.uint8) if tensor.numel() else tensor.cpu()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32_10([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.usefixtures("implementation")
def test_known_answers_come_out_of_the_op(device: torch.device) -> None:
    """Seed is the key, index the first two words of the counter, element // 4 the third, stream the fourth."""
    seed, index = 0x299F31D0A4093822, torch.tensor([0x05A308D3243F6A88], device=device)
    words = philox4x32_10(
        [torch.tensor([w]) for w in (0x243F6A88, 0x05A308D3, 1, 0x03707344)], (0xA4093822, 0x299F31D0)
    )
    made = uniform(seed, index, (8,), stream=0x03707344)[0, 4:]
    assert made.cpu().tolist() == [(int(word) >> 8) / 2**24 for word in words]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("implementation")
def test_one_result_everywhere(kind: str, case: str, device: torch.device) -> None:
    """Every implementation on every device gives what the reference gives on the CPU; float64 but for its last bits."""
    samples, size = CASES[case]
    index = torch.arange(samples) * 0x123456789AB + 2**40
    made = draw(kind, -5, index.to(device), size, stream=3)
    code = (
        counter_noise.INTEGERS
        if kind == "integers"
        else getattr(counter_noise, kind.removesuffix("64").upper())[
            torch.float64 if kind.endswith("64") else torch.float32
        ]
    )
    expected = counter_noise.reference(-5, index, list(size), 3, code, 1000)
    assert made.shape == (samples, *size)
    assert made.device == device
    assert made.dtype == expected.dtype
    if kind == "normal64":
        torch.testing.assert_close(made.cpu(), expected, rtol=1e-15, atol=1e-15)
    else:
        assert torch.equal(made.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_on_the_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    counter_noise.choose.cache_clear()
    index = torch.arange(64) + 2**61
    assert torch.equal(bits(draw(kind, 9, index, (3, 1001))), bits(draw(kind, 9, index.cuda(), (3, 1001))))
    counter_noise.choose.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("implementation")
def test_does_not_depend_on_the_batch_or_on_how_much_is_drawn(kind: str, device: torch.device) -> None:
    index = torch.tensor([5, 2**62, 0, 77, 5], device=device)
    together = draw(kind, 1, index, (3, 7))
    assert torch.equal(together[0], together[4])
    for i in range(5):
        assert torch.equal(draw(kind, 1, index[i : i + 1], (3, 7))[0], together[i])
    assert torch.equal(draw(kind, 1, index, (2,)).flatten(1), together.flatten(1)[:, :2])
    strided = torch.stack([index, index + 1], dim=1)[:, 0]
    assert torch.equal(draw(kind, 1, strided, (3, 7)), together)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("implementation")
def test_seed_index_and_stream_matter_in_all_their_bits(kind: str, device: torch.device) -> None:
    def one(seed: int, index: int, stream: int) -> tuple[float, ...]:
        return tuple(draw(kind, seed, torch.tensor([index], device=device), (8,), stream)[0].tolist())

    seeds = [one(seed, 3, 0) for seed in (0, 1, 2**31, 2**32, 2**63, 2**64 - 1)]
    indices = [one(0, index, 0) for index in (0, 1, 2**31, 2**32, 2**33, 2**62)]
    streams = [one(0, 3, stream) for stream in (1, 2, 2**31, 2**32 - 1)]
    assert len({*seeds, *indices, *streams}) == 16
    assert one(-1, 3, 0) == one(2**64 - 1, 3, 0) == one(2**65 - 1, 3, 0)


def test_float32_is_float64_with_fewer_bits() -> None:
    index = torch.arange(16)
    u32, u64 = uniform(4, index, (4096,)), uniform(4, index, (4096,), dtype=torch.float64)
    assert torch.equal(u32.double(), torch.floor(u64 * 2**24) / 2**24)
    z32, z64 = normal(4, index, (4096,)), normal(4, index, (4096,), dtype=torch.float64)
    assert (z32 - z64).abs().max() < 1e-4
    assert (z32 - z64).abs().median() < 1e-7


def test_half_types_are_rounded_and_never_reach_one() -> None:
    index = torch.arange(64)
    u = uniform(4, index, (4096,))
    for dtype, significand in ((torch.bfloat16, 8), (torch.float16, 11)):
        half = uniform(4, index, (4096,), dtype=dtype)
        assert half.dtype == dtype
        assert half.max() < 1
        assert torch.equal(half.float(), torch.floor(u * 2**significand) / 2**significand)
        assert torch.equal(normal(4, index, (4096,), dtype=dtype), normal(4, index, (4096,)).to(dtype))
    assert u.max() > 1 - 2**-12  # so that rounding to nearest would have given 1 in both


# ---- statistics, on a million numbers of a fixed seed: a sample that passes once passes always

MANY = torch.arange(256)


@pytest.mark.parametrize("kind", ["uniform", "uniform64"])
def test_uniform_numbers_fill_their_range_evenly(kind: str) -> None:
    u = draw(kind, 11, MANY, (4096,)).double().flatten()
    n = u.numel()
    assert 0 <= u.min() < 20 / n
    assert 1 - 20 / n < u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    assert scipy.stats.chisquare(torch.histc(u, 1000, 0, 1).numpy()).pvalue > 0.01
    last_bits = (u * 2**24).long() % 256  # a generator's weak end
    assert scipy.stats.chisquare(torch.bincount(last_bits, minlength=256).numpy()).pvalue > 0.01


@pytest.mark.parametrize("kind", ["normal", "normal64"])
def test_normal_numbers_are_normal(kind: str) -> None:
    z = draw(kind, 12, MANY, (4096,)).double().flatten()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * math.sqrt(variance / n)
    assert scipy.stats.kstest(z[:200_000].numpy(), "norm").pvalue > 0.01
    tail = (z.abs() > 4).double().mean()
    assert abs(tail - 6.334e-5) < 4 * math.sqrt(6.334e-5 / n)


def test_integers_are_even_for_small_and_for_huge_ranges() -> None:
    dice = integers(13, MANY, (4096,), high=6).flatten()
    assert scipy.stats.chisquare(torch.bincount(dice, minlength=6).numpy()).pvalue > 0.01
    huge = integers(13, MANY, (4096,), high=3 * 2**30).flatten()  # of 32 bits, a third would come twice as often
    assert 0 <= huge.min() < huge.max() < 3 * 2**30
    assert scipy.stats.chisquare(torch.bincount(huge >> 22, minlength=3 * 256).numpy()).pvalue > 0.01
    assert scipy.stats.chisquare(torch.bincount(huge % 256, minlength=256).numpy()).pvalue > 0.01
    assert integers(13, MANY, (4096,), high=1).max() == 0


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_neighbours_are_not_correlated(kind: str) -> None:
    """Of elements (also within and across groups of four), of samples, of streams and of seeds."""
    x = draw(kind, 14, MANY, (4096,)).double()
    x = (x - x.mean()) / x.std()
    stream, seed = (draw(kind, s, MANY, (4096,), t).double() for s, t in ((14, 1), (15, 0)))
    stream, seed = ((y - y.mean()) / y.std() for y in (stream, seed))
    pairs = [(x[:, lag:], x[:, :-lag]) for lag in (1, 2, 3, 4, 5, 256)]
    pairs += [(x[lag:], x[:-lag]) for lag in (1, 2, 16)]
    pairs += [(x, stream), (x, seed), (x[1:], stream[:-1])]
    for a, b in pairs:
        assert abs((a * b).mean()) < 4.5 / math.sqrt(a.numel())
        assert abs((a**2 * b**2).mean() - (a**2).mean() * (b**2).mean()) < 4.5 * 4 / math.sqrt(a.numel())


# ---- as an op of torch


@pytest.mark.usefixtures("implementation")
def test_opcheck(device: torch.device) -> None:
    index = torch.arange(5, device=device)
    for kind in range(5):
        torch.library.opcheck(torch.ops.fastgan.counter_noise.default, (7, index, [3, 5], 2, kind, 10))


@pytest.mark.usefixtures("implementation")
def test_under_torch_compile(device: torch.device) -> None:
    def turn(seed: int, index: Tensor, stream: int) -> tuple[Tensor, ...]:
        z = normal(seed, index, (3, 5), stream=stream) * 2
        return z, uniform(seed, index, (4,), dtype=torch.bfloat16), integers(seed, index, (), high=10, stream=stream)

    compiled = torch.compile(turn, fullgraph=True, backend="aot_eager")
    for seed in (1, -3, 2**63 + 5):
        for samples in (4, 6):
            index = torch.arange(samples, device=device)
            assert all(map(torch.equal, compiled(seed, index, 7), turn(seed, index, 7)))


INDEX = torch.arange(3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: normal(1, INDEX.int(), (4,)), "expected `index` as an int64 tensor"),
        (lambda: normal(1, INDEX[None], (4,)), r"expected `index` as an int64 tensor \[N\], got torch.int64 \(1, 3\)"),
        (lambda: uniform(1, INDEX, (4,), stream=2**32), "expected `stream` between 0 and"),
        (lambda: uniform(1, INDEX, (4,), stream=-1), "expected `stream` between 0 and"),
        (lambda: uniform(1, INDEX, (2**20, 2**13)), "expected fewer than 2"),
        (lambda: normal(1, INDEX, (4,), dtype=torch.int64), "expected float32, float64, bfloat16 or float16"),
        (lambda: integers(1, INDEX, (4,), high=0), "expected `high` between 1 and"),
        (lambda: integers(1, INDEX, (4,), high=2**32 + 1), "expected `high` between 1 and"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bad: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        bad()
    assert "\n" not in str(error.value)
