"""Transposed convolutions by phases: which of them split so, and the tiles that the kernels work in.

A transposed convolution whose kernel is a multiple of its stride s, and whose output is exactly s times its input,
splits into s dense convolutions of stride 1 per dimension. Input i reaches output s i + k - p through kernel element k;
so output s h + a, of phase a, is

    sum over t < T of x[h + c - t] W[r + s t],     r = (a + p) mod s,  c = floor((a + p) / s),  T = kernel / s

and no product is with a zero that the stride put there. For k = 4, s = 2, p = 1: phase 0 takes kernel elements 1 and 3
of inputs h and h - 1, phase 1 takes 0 and 2 of h + 1 and h. In two dimensions there are s_h s_w phases of T_h T_w taps;
one dimension is two with one row. This holds for kernel = 2 stride, padding = stride / 2 (generators of images and
vocoders), for kernel = stride, and for kernel 3, stride 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

SMALL_SHARED = (86, 89, 120)  # compute capabilities where a block has 99 KiB of shared memory
MULTIPROCESSORS = 132  # what tiles are chosen for; an H200's


@dataclass(frozen=True)
class Phases:
    """Stride, taps per phase, and padding, (height, width). The kernel has stride * taps elements."""

    stride: tuple[int, int]
    taps: tuple[int, int]
    padding: tuple[int, int]

    @property
    def count(self) -> int:
        return self.stride[0] * self.stride[1]

    @property
    def kernel(self) -> tuple[int, int]:
        return self.stride[0] * self.taps[0], self.stride[1] * self.taps[1]

    def reach(self, dim: int) -> tuple[int, int]:
        """How many inputs before and after h the outputs s h ... s h + s - 1 read."""
        s, taps, p = self.stride[dim], self.taps[dim], self.padding[dim]
        return taps - 1 - p // s, (s - 1 + p) // s

    def constants(self) -> dict[str, int]:
        """As the kernels take them."""
        (sh, sw), (th, tw), (ph, pw) = self.stride, self.taps, self.padding
        return {"SH": sh, "SW": sw, "TH": th, "TW": tw, "PH": ph, "PW": pw}


def phases_of(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Phases | None:
    """The phases of a transposed convolution in one or two dimensions; None where it does not split as above."""
    if groups != 1 or any(d != 1 for d in dilation) or len(kernel) not in (1, 2):
        return None
    found = [(1, 1, 0)] if len(kernel) == 1 else []
    for k, s, p, extra in zip(kernel, stride, padding, output_padding, strict=False):
        if k % s or k - s != 2 * p - extra or p >= k:
            return None
        found.append((s, k // s, p))
    strides, taps, paddings = zip(*found, strict=True)
    return Phases(strides, taps, paddings)


@dataclass(frozen=True)
class Tile:
    """What one program makes, m x n numbers, k at a time; and how."""

    m: int
    n: int
    k: int
    warps: int = 8
    stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def power_of_two(number: int) -> int:
    """The smallest one that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def product_tile(m: int, n: int, k: int, copies: int, size: int, widest: bool, roomy: bool) -> Tile:
    """For `copies` products [m, k] x [k, n], k the channels of one tap, of numbers of `size` bytes.

    widest: tiles of 128 x 256 may be; roomy: there is shared memory for more than 99 KiB of operands

    A static table: the widest tile of which there are enough to occupy a GPU.
    """
    deep = min(64 if size <= 2 else 32, max(16, power_of_two(k)))
    if n > 64:
        tiles = [Tile(128, 128, deep), Tile(64, 128, deep, 4), Tile(64, 64, deep, 4)]
        if n > 128 and widest:
            tiles.insert(0, Tile(128, 256, deep))
    elif n > 32:
        tiles = [Tile(128, 64, deep, 4), Tile(64, 64, deep, 4)]
        if roomy:
            tiles.insert(0, Tile(256, 64, deep))
    else:
        width = max(16, power_of_two(n))
        tiles = [Tile(128, width, deep, 4), Tile(64, width, deep, 4)]
        if roomy:
            tiles.insert(0, Tile(256, width, deep))
    for tile in tiles:
        if copies * -(-m // tile.m) * -(-n // tile.n) >= MULTIPROCESSORS:
            return tile
    return tiles[-1]


@dataclass(frozen=True)
class Box:
    """Pixels of a tile as a box of n samples, h rows and w columns, for tensor descriptors."""

    n: int
    h: int
    w: int

    def count(self, n: int, h: int, w: int) -> int:
        """Boxes that n samples of h x w pixels take."""
        return -(-n // self.n) * -(-h // self.h) * -(-w // self.w)


def box_of(pixels: int, height: int, width: int) -> Box | None:
    """A box of `pixels` (a power of two) for maps of height x width; None where there is none.

    Boxes may stick out of the batch and of rows, not of columns: where samples meet, (sample, row) counts as one
    dimension of the output. So h divides the height, and is all of it where there is more than one sample.
    """
    w = min(pixels, 256, power_of_two(width))
    while w > 8 and -(-width // (w // 2)) * (w // 2) < -(-width // w) * w:
        w //= 2
    h = min(pixels // w, height & -height)
    n = pixels // (w * h)
    return Box(n, h, w) if n == 1 or h == height else None


@dataclass(frozen=True)
class Patch:
    """Input pixels h x w of one program of the image layer, of which `inner` have all their neighbours in it."""

    h: int
    w: int
    inner_h: int
    inner_w: int


def patch_of(phases: Phases, pixels: int, height: int, width: int) -> Patch:
    """The patch of `pixels` (a power of two) for maps of height x width that reads the least twice."""
    best, least = None, 0
    h = 1
    while h <= pixels:
        size = (h, pixels // h)
        inner = []
        for d, extent in enumerate((height, width)):
            whole = size[d] >= extent  # then nothing beyond is needed: there is only zero padding
            inner.append(size[d] if whole else size[d] - sum(phases.reach(d)))
        if min(inner) > 0:
            number = -(-height // inner[0]) * -(-width // inner[1])
            if best is None or number < least:
                best, least = Patch(*size, *inner), number
        h *= 2
    assert best is not None, "patches are larger than what a phase reaches"
    return best


def rows(x: Tensor) -> Tensor:
    """x [N, C, H, W] or [N, C, L] as [N, H, W, C] contiguous, H = 1 for L; a copy where memory is not so already."""
    last = x.movedim(1, -1).contiguous()
    return last.unsqueeze(1) if last.dim() == 3 else last


def channels_first(y: Tensor, dims: int) -> Tensor:
    """What `rows` takes apart: y [N, H, W, C] as [N, C, H, W], or for 3 dimensions as [N, C, W]. Never a copy."""
    return (y.squeeze(1) if dims == 3 else y).movedim(-1, 1)
