"""The numbers of a two-dimensional transposed convolution, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Of nn.ConvTranspose2d; (rows, columns) each. One-dimensional ones have one row."""

    stride: tuple[int, ...] = (2, 2)
    padding: tuple[int, ...] = (1, 1)
    output_padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def output_size(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Of an input of `size` (rows, columns)."""
        return tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, k, s, p, d, o in zip(
                size, kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True
            )
        )
