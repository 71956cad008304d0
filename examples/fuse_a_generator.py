"""A generator of plain PyTorch layers, fused: what became of it, the same images, and the time of a training step.

    python examples/fuse_a_generator.py [BATCH] [WIDTH]

The time depends on the device; on one where our kernels do not run, both are the same.
"""

from __future__ import annotations

import copy
import itertools
import sys
import time

import torch
from torch import Tensor, nn

from fastgan.nn import fuse, fused

LATENT, STEPS = 100, 5


def generator(width: int) -> nn.Sequential:
    """DCGAN's: z [N, LATENT, 1, 1] -> images [N, 3, 64, 64]."""
    widths = [LATENT, 8 * width, 4 * width, 2 * width, width]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers += [
            nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def milliseconds(model: nn.Module, z: Tensor) -> float:
    """Of one forward and backward pass, the median of STEPS."""
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        model(z).square().mean().backward()
        if z.is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[1:])[STEPS // 2]


def main() -> None:
    batch, width = [*map(int, sys.argv[1:]), *(16, 16)[len(sys.argv) - 1 :]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    plain = generator(width).to(device)
    other = fuse(copy.deepcopy(plain))
    z = torch.randn(batch, LATENT, 1, 1, device=device)
    print(*fused(other), sep="\n")
    with torch.no_grad():
        expected, got = plain(z), other(z)
    print(f"relative difference of the images {float((got - expected).norm() / expected.norm()):.1e}")
    print(f"{milliseconds(plain, z):.1f} ms as written, {milliseconds(other, z):.1f} ms fused, on {device}")


if __name__ == "__main__":
    main()
