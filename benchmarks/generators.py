"""DCGAN generators in plain PyTorch, and one forward and backward of them: fused by fastgan, eager, compiled.

As in PyTorch's DCGAN example: Sequentials of ConvTranspose2d, BatchNorm2d and ReLU in place, tanh behind the last.

    python -m benchmarks.generators SIZE BATCH CANDIDATE DEVICE

prints the bytes by which memory rises within a forward and backward.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from fastgan.nn import fuse

LATENT = 100
# Size of the images -> channels at 4x4, 8x8, ...
WIDTHS = {64: (512, 256, 128, 64), 128: (1024, 512, 256, 128, 64), 256: (1024, 512, 256, 128, 64, 32)}

Step = Callable[[], object]


def generator_of(size: int) -> nn.Module:
    """z [N, 100, 1, 1] -> images [N, 3, size, size], with the example's initialisation."""
    torch.manual_seed(0)
    widths = WIDTHS[size]
    layers: list[nn.Module] = []
    for before, width in zip((LATENT, *widths), widths, strict=False):
        stride, padding = (2, 1) if layers else (1, 0)
        layers += [nn.ConvTranspose2d(before, width, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
    layers += [nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.02)
    return network


def step_of(network: nn.Module, z: Tensor, grad: Tensor, *, half: bool) -> Step:
    """Forward and backward, gradients of all parameters; with bf16 autocast where `half`."""

    def step() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        with torch.autocast(z.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            images = network(z)
        images.backward(grad.to(images.dtype))

    return step


def made(candidate: str, size: int, batch: int, device: str) -> Step:
    """The step of "fused", "eager" (NCHW), "eager, channels-last" or "compiled"."""
    last = candidate != "eager"
    layout: Any = torch.channels_last if last else torch.contiguous_format
    network = copy.deepcopy(generator_of(size)).to(device, memory_format=layout)
    if candidate == "fused":
        network = fuse(network)
    if candidate == "compiled":
        network = torch.compile(network, mode="max-autotune" if device == "cuda" else "default")  # type: ignore[assignment]
    z = torch.randn(batch, LATENT, 1, 1, device=device)
    grad = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    return step_of(network, z, grad, half=device == "cuda")


def main(size: str, batch: str, candidate: str, device: str) -> None:
    print(memory.rise(made(candidate, int(size), int(batch), device), device))


if __name__ == "__main__":
    main(*sys.argv[1:])
