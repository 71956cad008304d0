"""Which image is sample number n of a run: a pure function of (seed, n), without state and without tables.

Samples are numbered from 0 over the whole run and over all ranks. Epoch e covers the numbers e·count to
(e + 1)·count - 1 and is a pseudo-random permutation of the images keyed by (seed, e): each comes once.

The permutation is a generalised Feistel cipher with cycle walking (Black & Rogaway, "Ciphers with Arbitrary
Finite Domains", 2002). A number x = row·columns + column lies on a grid just large enough for `count`;
each round shifts the row by a hash of the column, or the column by a hash of the row, which can be undone
whatever the hash is. A result that is not below `count` goes through once more, until it is.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fastgan.data.image_set import Indices
from fastgan.data.rows import address, native

ROUNDS = 8
SMALL, SMALL_ROUNDS = 1000, 24  # with 8 rounds the shuffles of fewer than 8 images are measurably uneven
MAX_COUNT = 2**40

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FLIPS = 0xD1B54A32D192ED03  # keeps the flips apart from the order
_PLACES = 0x8CB92BA72F3D8DD7  # and the places of random crops
_BLOCKS = 0xE7037ED1A0B428DB  # and the order of blocks from that in each
_SECOND = 0xA0761D6478BD642F  # and the order of a second set of images


def image_order(seed: int, count: int, samples: Indices, block: int = 0) -> Indices:
    """Image numbers [N] in [0, count) of the global sample numbers `samples` [N] >= 0.

    block: 0, or images that are shown one after another in shuffled order, before those of another block; the last ones
        of an epoch are the images that fill no block
    """
    assert 1 <= count <= MAX_COUNT, count
    if module := native():
        samples, out = np.ascontiguousarray(samples, np.int64), np.empty(len(samples), np.int64)
        module.image_order_cpu(seed & _MASK, count, block, address(samples), len(samples), address(out))
        return out
    return image_order_by_numpy(seed, count, samples, block)


def image_order_by_numpy(seed: int, count: int, samples: Indices, block: int = 0) -> Indices:
    """As image_order(), without the native part."""
    epoch = samples // count
    position = (samples - epoch * count).astype(np.uint64)
    key = _mix(_hash(seed) + epoch.astype(np.uint64))
    if not 0 < block < count:
        return _permuted(position, key, count).astype(np.int64)
    blocks = count // block
    number = position // np.uint64(block)
    image = position - number * np.uint64(block)
    whole = np.flatnonzero(number < blocks)
    number[whole] = _permuted(number[whole], _mix(key[whole] + np.uint64(_BLOCKS)), blocks)
    key = _mix(key + number)
    image[whole] = _permuted(image[whole], key[whole], block)
    rest = np.flatnonzero(number == blocks)
    image[rest] = _permuted(image[rest], key[rest], max(count - blocks * block, 1))
    return (number * np.uint64(block) + image).astype(np.int64)


def _permuted(position: NDArray[np.uint64], key: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """A permutation of [0, count) for each key, of the positions [N]."""
    rows = isqrt(count - 1) + 1
    rows += rows % 2  # on an odd by odd grid all rounds would be even permutations
    columns = -(-count // rows)
    rounds = SMALL_ROUNDS if count < SMALL else ROUNDS
    image = _shuffle(position, key, rows, columns, rounds)
    outside = np.flatnonzero(image >= count)
    while outside.size:
        image[outside] = _shuffle(image[outside], key[outside], rows, columns, rounds)
        outside = outside[image[outside] >= count]
    return image


def flips(seed: int, samples: Indices) -> NDArray[np.bool_]:
    """Whether each of the global sample numbers `samples` [N] is shown mirrored: a coin of (seed, number)."""
    if module := native():
        samples, out = np.ascontiguousarray(samples, np.int64), np.empty(len(samples), np.bool_)
        module.flips_cpu(seed & _MASK, address(samples), len(samples), address(out))
        return out
    return flips_by_numpy(seed, samples)


def flips_by_numpy(seed: int, samples: Indices) -> NDArray[np.bool_]:
    """As flips(), without the native part."""
    coins = _mix(_hash(seed ^ _FLIPS) + samples.astype(np.uint64)) >> np.uint64(63)
    return coins.astype(np.bool_)


def uniform(seed: int, images: Indices) -> NDArray[np.float64]:
    """A number in [0, 1) for each of the image numbers `images` [N]: a function of (seed, number)."""
    bits = _mix(_hash(seed ^ _PLACES) + images.astype(np.uint64)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def second_seed(seed: int) -> int:
    """The seed of a second set that is shown in an order of its own."""
    return seed ^ _SECOND


def _shuffle(
    x: NDArray[np.uint64], key: NDArray[np.uint64], rows: int, columns: int, rounds: int
) -> NDArray[np.uint64]:
    """A permutation of [0, rows·columns) for each key; x, key: [N]."""
    row = x // np.uint64(columns)
    column = x - row * np.uint64(columns)
    for step in range(0, rounds, 2):
        row = _shift(row, key + _times_golden(step + 1) + column, rows)
        column = _shift(column, key + _times_golden(step + 2) + row, columns)
    return row * np.uint64(columns) + column


def _shift(x: NDArray[np.uint64], salt: NDArray[np.uint64], modulus: int) -> NDArray[np.uint64]:
    """(x + hash(salt)) mod `modulus`, for x < modulus < 2^32."""
    amount = ((_mix(salt) >> np.uint64(32)) * np.uint64(modulus)) >> np.uint64(32)
    total = x + amount
    return np.minimum(total, total - np.uint64(modulus))  # a negative difference wraps to a huge one


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective hash of 64 bits: the output function of SplitMix64 (Steele, Lea & Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(seed: int) -> NDArray[np.uint64]:
    """`seed`, any integer, as 64 well-mixed bits; [1], since NumPy warns when scalars wrap."""
    return _mix(np.array([(seed + _GOLDEN) & _MASK], np.uint64))


def _times_golden(step: int) -> np.uint64:
    return np.uint64((step * _GOLDEN) & _MASK)
