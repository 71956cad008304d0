"""The order of the images: exact permutations, evenly distributed, a function of (seed, sample) only."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch  # noqa: F401, with it the native part
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastgan.data.sampler import flips, flips_by_numpy, image_order, image_order_by_numpy

EVEN = 1e-5  # a p-value below this means "not uniform"; seeds are fixed, so nothing here is flaky


def epochs(seed: int, count: int, number: int, first: int = 0) -> np.ndarray:
    """Image order of `number` epochs, [number, count]."""
    return image_order(seed, count, np.arange(first * count, (first + number) * count)).reshape(number, count)


@pytest.mark.parametrize("seed", [0, 1, -7, 2**64 + 3])
def test_every_small_set_is_permuted_exactly(seed: int) -> None:
    for count in range(1, 300):
        order = epochs(seed, count, 4)
        assert (np.sort(order, axis=1) == np.arange(count)).all(), count


@pytest.mark.parametrize("count", [999, 1000, 1001, 4095, 4096, 4097, 65_537, 1_000_003])
def test_larger_sets_are_permuted_exactly(count: int) -> None:
    assert (np.bincount(image_order(5, count, np.arange(count) + 3 * count), minlength=count) == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(10**6, 2**40),
    seed=st.integers(-(2**70), 2**70),
    start=st.integers(0, 2**40),
)
def test_any_piece_of_a_huge_set_has_no_image_twice(count: int, seed: int, start: int) -> None:
    first = start // count * count + min(start % count, count - 4096)
    piece = image_order(seed, count, np.arange(first, first + 4096))
    assert len(set(piece.tolist())) == 4096
    assert piece.min() >= 0
    assert piece.max() < count


def test_the_order_is_a_function_of_each_sample_alone() -> None:
    samples = np.random.default_rng(0).integers(0, 5000, 1000)
    assert (image_order(3, 777, samples) == image_order(3, 777, np.arange(5000))[samples]).all()
    assert image_order(3, 777, samples[:0]).shape == (0,)


def test_epochs_and_seeds_differ() -> None:
    order = epochs(0, 1000, 3)
    others = [order[1], order[2], epochs(1, 1000, 1)[0], np.arange(1000)]
    for other in others:
        assert (order[0] == other).sum() < 10  # one fixed point is expected


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_all_permutations_of_a_tiny_set_are_equally_likely(count: int) -> None:
    order = epochs(11, count, 200 * math.factorial(count))
    code = order @ (count ** np.arange(count))
    every = np.array(list(permutations(range(count)))) @ (count ** np.arange(count))
    seen = np.array([(code == value).sum() for value in every])
    assert seen.sum() == len(order)
    assert stats.chisquare(seen).pvalue > EVEN


@pytest.mark.parametrize("count", [7, 9, 10, 31, 64, 1009])
def test_each_image_is_equally_likely_everywhere_and_beside_every_other(count: int) -> None:
    number = max(2000, 60 * count)
    bins = min(count, 20)
    order = epochs(2, count, number if count < 1000 else 300)
    where = np.broadcast_to(np.arange(count) * bins // count, order.shape)
    table = np.histogram2d(where.ravel(), order.ravel() * bins // count, bins=bins)[0]
    sizes = np.bincount(np.arange(count) * bins // count, minlength=bins)
    expected = np.outer(sizes, sizes) * len(order) / count
    assert stats.chi2.sf(((table - expected) ** 2 / expected).sum(), (bins - 1) ** 2) > EVEN
    steps = np.bincount(((order[:, 1:] - order[:, :-1]) % count).ravel(), minlength=count)
    assert steps[0] == 0
    if count < 100:
        first_steps = np.bincount((order[:, 1] - order[:, 0]) % count, minlength=count)[1:]
        assert stats.chisquare(first_steps).pvalue > EVEN


@pytest.mark.parametrize("count", [9, 16, 25])  # squares fill their grids: no cycle walking changes the sign
def test_half_of_the_permutations_are_even(count: int) -> None:
    first, second = np.triu_indices(count, 1)
    order = epochs(6, count, 1000)
    inversions = (order[:, first] > order[:, second]).sum(1)
    assert 400 < (inversions % 2).sum() < 600


def test_a_large_set_is_shuffled_well() -> None:
    count = 1_000_003
    order = epochs(4, count, 1)[0] / count
    for lag in (1, 2, 1000, 1001):  # 1001 columns: neighbours on the grid
        table = np.histogram2d(order[:-lag], order[lag:], bins=32, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > EVEN
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.005
    rises = (np.diff(order) > 0).mean()
    assert abs(rises - 0.5) < 0.002
    spectrum = np.abs(np.fft.rfft(order - order.mean())[1:]) ** 2
    assert spectrum.max() / spectrum.mean() < 2 * np.log(len(spectrum))


def test_flips_are_a_fair_coin_of_seed_and_sample() -> None:
    samples = np.arange(100_000)
    coins = flips(3, samples)
    assert coins.dtype == np.bool_
    assert (flips(3, samples[500:600]) == coins[500:600]).all()
    assert abs(coins.mean() - 0.5) < 0.006
    assert abs((coins[1:] == coins[:-1]).mean() - 0.5) < 0.006
    assert abs((coins == flips(4, samples)).mean() - 0.5) < 0.006
    image = image_order(3, 1000, samples)
    per_image = np.bincount(image, weights=coins, minlength=1000)  # of 100 showings
    assert per_image.min() > 25
    assert per_image.max() < 75


@pytest.mark.parametrize(
    ("count", "block"), [(1000, 64), (1000, 7), (65, 64), (64, 64), (10, 64), (4096, 1024), (9, 1)]
)
def test_blocks_are_permuted_and_so_is_each(count: int, block: int) -> None:
    samples = np.arange(3 * count)
    order = image_order(7, count, samples, block).reshape(3, count)
    assert (np.sort(order, axis=1) == np.arange(count)).all()
    whole = count // block * block
    if 0 < block < count:
        for epoch in order:
            pieces = epoch[:whole].reshape(-1, block) // block
            assert (pieces == pieces[:, :1]).all()  # one block after the other
            assert (epoch[whole:] >= whole).all()
    picked = np.random.default_rng(0).permutation(samples)[:50]
    assert (image_order(7, count, picked, block) == order.reshape(-1)[picked]).all()


def test_blocks_are_shuffled_differently() -> None:
    order = image_order(1, 6400, np.arange(12800), 64).reshape(2, 100, 64)
    first = order[:, :, 0] // 64
    assert len(set(first[0].tolist())) == 100
    assert (first[0] == first[1]).sum() < 10
    inside = order % 64
    assert (inside[0, 0] != inside[0, 1]).mean() > 0.8
    table = np.zeros((64, 64))
    np.add.at(table, (np.broadcast_to(np.arange(64), (200, 64)), inside.reshape(200, 64)), 1)
    assert stats.chisquare(table.ravel()).pvalue > EVEN


def test_a_billion_images_take_no_memory_and_no_time() -> None:
    import tracemalloc

    image_order(0, 10, np.arange(10))
    tracemalloc.start()
    try:
        for start in (0, 10**9 - 2048, 7 * 10**9 + 123_456_789, 10**15):
            piece = image_order(11, 10**9, start + np.arange(4096))
            assert 0 <= piece.min() < piece.max() < 10**9
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 10**10),
    first=st.integers(0, 10**12),
    batch=st.integers(1, 40),
    world=st.integers(1, 9),
)
def test_ranks_of_any_number_share_out_the_same_samples(count: int, first: int, batch: int, world: int) -> None:
    steps = np.arange(3)
    whole = image_order(2, count, first + np.arange(3 * batch * world))
    parts = [first + (steps[:, None] * world + rank) * batch + np.arange(batch) for rank in range(world)]
    together = np.stack([image_order(2, count, part.reshape(-1)).reshape(3, batch) for part in parts], 1)
    assert (together.reshape(-1) == whole).all()


@pytest.mark.parametrize("seed", [0, -7, 2**64 + 3])
def test_the_native_part_gives_the_same_order(seed: int) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 999, 1000, 1001, 65_537, 10**9, 2**40):
        samples = generator.integers(0, 3 * count + 5, 500)
        for block in (0, 1, 5, 64, 65_536):
            expected = image_order_by_numpy(seed, count, samples, block)
            assert (image_order(seed, count, samples, block) == expected).all(), (count, block)
    assert (flips(seed, samples) == flips_by_numpy(seed, samples)).all()
