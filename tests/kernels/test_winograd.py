"""Convolutions by minimal filtering: against float64, odd sizes, any number of threads, and what the rule chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.kernels import winograd
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.winograd import DOWN, UP, WEIGHT, Filtering

aten = torch.ops.aten
here = EXTENSION.module is not None and EXTENSION.module.winograd_here()
pytestmark = pytest.mark.skipif(not here, reason=f"no native part, or no AVX2: {EXTENSION.cpu}")

# samples, height, width, small, large channels: whole tiles, cut ones, one pixel, several blocks and chunks of tiles
SIZES = [
    (2, 8, 8, 48, 32),
    (3, 5, 7, 32, 48),
    (1, 1, 1, 32, 32),
    (2, 1, 9, 32, 64),
    (40, 13, 12, 32, 32),
    (5, 4, 4, 64, 64),
]
# Relative to the norm of the result, in units of what float32 products of this depth do.
BOUND = {2: 2e-6, 4: 1e-5}


def random(*shape: int, seed: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


def maps(how: Filtering) -> tuple[Tensor, Tensor, Tensor]:
    """small, large, weight"""
    s, k = how.stride, how.kernel
    return (
        random(how.samples, how.small, how.height, how.width, seed=1),
        random(how.samples, how.large, s * how.height, s * how.width, seed=2),
        random(how.small, how.large, k, k, seed=3),
    )


def exact(how: Filtering, small: Tensor, large: Tensor, weight: Tensor) -> dict[int, Tensor]:
    """Of each way, by PyTorch in float64."""
    small, large, weight = small.double(), large.double(), weight.double()
    geometry: Any = [how.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1
    made = aten.convolution_backward(small, large, weight, None, *geometry, [True, True, False])
    return {DOWN: aten.convolution(large, weight, None, *geometry), UP: made[0], WEIGHT: made[1]}


def by_tiles(how: Filtering, tile: int, small: Tensor, large: Tensor, weight: Tensor) -> dict[int, Tensor]:
    return {
        DOWN: winograd.down(large, weight, how, tile),
        UP: winograd.up(small, weight, how, tile),
        WEIGHT: winograd.weight_gradient(small, large, how, tile),
    }


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("kernel", [4, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_numbers(size: tuple[int, ...], kernel: int, tile: int) -> None:
    how = Filtering(*size, kernel)
    tensors = maps(how)
    wanted = exact(how, *tensors)
    for way, made in by_tiles(how, tile, *tensors).items():
        assert made.shape == wanted[way].shape
        assert made.dtype == torch.float32
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert (made.double() - wanted[way]).norm() < BOUND[tile] * wanted[way].norm(), way


@pytest.mark.parametrize("kernel", [4, 3])
def test_tiles_of_two_round_as_the_library_does(kernel: int) -> None:
    how = Filtering(8, 8, 8, 128, 128, kernel)
    small, large, weight = maps(how)
    wanted = exact(how, small, large, weight)
    geometry: Any = [how.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1
    made = aten.convolution_backward(small, large, weight, None, *geometry, [True, True, False])
    library = {DOWN: aten.convolution(large, weight, None, *geometry), UP: made[0], WEIGHT: made[1]}
    for way, ours in by_tiles(how, 2, small, large, weight).items():
        error, theirs = ((each.double() - wanted[way]).norm() for each in (ours, library[way]))
        assert error < 2.5 * theirs, way
    for way, ours in by_tiles(how, 4, small, large, weight).items():
        error, theirs = ((each.double() - wanted[way]).norm() for each in (ours, library[way]))
        assert error < 10 * theirs, way


def test_threads_do_not_change_the_result() -> None:
    how = Filtering(7, 12, 10, 32, 64, 4)
    tensors, threads = maps(how), torch.get_num_threads()
    made = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            made.append([by_tiles(how, tile, *tensors) for tile in (2, 4)])
    finally:
        torch.set_num_threads(threads)
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            assert all(torch.equal(a[way], b[way]) for way in a)


def test_values_that_are_no_numbers_stay_where_they_come_from() -> None:
    """A NaN or infinity in a sample reaches that sample, and no other one."""
    how = Filtering(3, 8, 8, 32, 32, 4)
    small, large, weight = maps(how)
    large[1, 5, 3, 3], small[1, 5, 3, 3] = float("nan"), float("inf")
    for made in (winograd.down(large, weight, how, 4), winograd.up(small, weight, how, 4)):
        assert not made[1].isfinite().all()
        assert made[[0, 2]].isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_in_place_of_the_librarys_operations(transposed: bool, biased: bool) -> None:
    """The same arguments and results, in any memory format, of all gradients or some."""
    how = Filtering(16, 8, 8, 64, 32, 4)
    small, large, weight = (each.contiguous() for each in maps(how))
    x, grad = (small, large) if transposed else (large, small)
    bias = random(32 if transposed else 64, 1, 1, 1, seed=4).flatten() if biased else None
    geometry: Any = [2, 2], [1, 1], [1, 1], transposed, [0, 0], 1
    wanted = aten.convolution(x, weight, bias, *geometry)
    torch.testing.assert_close(winograd.convolution(x, weight, bias, *geometry), wanted, rtol=0, atol=2e-4)
    assert not torch.equal(winograd.convolution(x, weight, bias, *geometry), wanted)  # it was not the library
    sizes = None if bias is None else [len(bias)]
    for needs in ([True, True, biased], [True, False, False], [False, True, False], [False, False, biased]):
        theirs = aten.convolution_backward(grad, x, weight, sizes, *geometry, needs)
        made = winograd.convolution_backward(grad, x, weight, sizes, *geometry, needs)
        for needed, a, b in zip(needs, made, theirs, strict=True):
            assert (a is not None) == needed
            if needed:
                assert (a - b).norm() < 1e-5 * b.norm()


@pytest.mark.parametrize(
    ("x", "weight", "stride", "padding", "dilation", "groups", "dtype"),
    [
        ((4, 32, 17, 16), (32, 32, 4, 4), 2, 1, 1, 1, torch.float32),  # a row that no output reads
        ((4, 32, 16, 16), (32, 32, 4, 4), 2, 2, 1, 1, torch.float32),
        ((4, 32, 16, 16), (32, 32, 3, 3), 2, 1, 1, 1, torch.float32),
        ((4, 32, 16, 16), (32, 32, 3, 3), 1, 0, 1, 1, torch.float32),
        ((4, 32, 16, 16), (32, 32, 3, 3), 1, 1, 2, 1, torch.float32),
        ((4, 64, 16, 16), (64, 32, 3, 3), 1, 1, 1, 2, torch.float32),
        ((4, 40, 16, 16), (32, 40, 3, 3), 1, 1, 1, 1, torch.float32),  # channels that are no multiple of 16
        ((4, 16, 16, 16), (32, 16, 3, 3), 1, 1, 1, 1, torch.float32),  # few of them
        ((4, 32, 16, 16), (32, 32, 3, 5), 1, 1, 1, 1, torch.float32),
        ((4, 32, 16, 16), (32, 32, 3, 3), 1, 1, 1, 1, torch.float64),
        ((1, 512, 4, 4), (512, 512, 3, 3), 1, 1, 1, 1, torch.float32),  # too few pixels for so many weights
    ],
)
def test_the_rest_is_the_librarys(x: Any, weight: Any, stride: int, padding: int, dilation: int, groups: int,
                                  dtype: torch.dtype) -> None:  # fmt: skip
    a, w = (random(*shape, seed=i).to(dtype) for i, shape in enumerate((x, weight)))
    geometry: Any = [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups
    assert torch.equal(winograd.convolution(a, w, None, *geometry), aten.convolution(a, w, None, *geometry))


def test_what_the_rule_chooses() -> None:
    """Large tiles where there are many of them; small ones, then the library, where weights weigh more."""
    ways = (DOWN, UP, WEIGHT)
    assert [Filtering(64, 16, 16, 128, 64, 4).tile(way) for way in ways] == [4, 4, 4]
    assert [Filtering(64, 4, 4, 512, 256, 4).tile(way) for way in ways] == [2, 2, 2]
    assert [Filtering(4, 4, 4, 512, 256, 4).tile(way) for way in ways] == [0, 0, 2]
    assert [Filtering(1, 4, 4, 512, 256, 4).tile(way) for way in ways] == [0, 0, 0]
    assert [Filtering(16, 64, 64, 64, 64, 3).tile(way) for way in ways] == [4, 4, 4]
