"""Generators of transposed convolutions, batch normalisation and activations: fused, eager and compiled.

Forward and backward of whole generators, of the image layer, and of one block per size. On a CPU in fp32; on a GPU in
bf16 (autocast) with channels-last baselines and torch.compile in its slowest to build and fastest mode.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import generators, memory
from fastgan.kernels.conv_transpose_bn_act import conv_transpose
from fastgan.nn import fuse

SIZES = {"cpu": [(64, 64)], "cuda": [(64, 64), (64, 512), (128, 64), (128, 256), (256, 64)]}  # (images, batch)
# Goals, by device and size of the images: at least this much faster than eager's faster layout, and than compiled
GOALS = {("cpu", 64): (1.1, 1.0), ("cuda", 64): (1.2, 1.05), ("cuda", 128): (1.3, 1.1), ("cuda", 256): (1.45, 1.2)}
LAST = torch.channels_last


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size_and_batch" in metafunc.fixturenames:
        name = metafunc.config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
        metafunc.parametrize("size_and_batch", SIZES[name], ids=lambda p: f"{p[0]}-batch-{p[1]}")


def check(size: int, device: str) -> None:
    """Fused and eager give the same images and gradients in float64."""
    plain = generators.generator_of(size).to(device, torch.float64)
    z = torch.randn(2, generators.LATENT, 1, 1, device=device, dtype=torch.float64)
    results = []
    for network in (copy.deepcopy(plain), fuse(copy.deepcopy(plain))):
        images = network(z)
        images.square().sum().backward()
        results.append([images.detach(), *(p.grad for p in network.parameters()), *network.buffers()])
    for theirs, ours in zip(*results, strict=True):
        error = (ours - theirs).double().norm() / theirs.double().norm()
        assert error < 1e-10, f"results differ by {error:.1e}"


@pytest.mark.timeout(1200)
def test_generator(size_and_batch, ratio, device):
    size, batch = size_and_batch
    check(size, device)
    names = ["fused", "eager", "eager, channels-last", "compiled"]
    candidates = {name: generators.made(name, size, batch, device) for name in names}
    for step in candidates.values():
        step()
    arguments = [str(size), str(batch)]
    peaks = {
        name: memory.in_new_process("benchmarks.generators", [*arguments, name], device)
        for name in ("fused", "eager, channels-last")
    }
    case = ratio(
        "fused_block", f"DCGAN-{size} generator, forward + backward, batch {batch}", candidates, "fused", memory=peaks
    )
    eager, compiled = GOALS[device, size]
    fastest = min(names[1:3], key=case.median)
    assert case.ratio(fastest).high >= eager, f"not {eager}x as fast as {fastest}"
    assert case.ratio("compiled").high >= compiled, f"not {compiled}x as fast as torch.compile"
    assert peaks["fused"] <= 0.75 * peaks["eager, channels-last"], peaks


def image_layer(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 64, 32, 32, device=device)
    return x, 0.02 * torch.randn(64, 3, 4, 4, device=device), torch.randn(64, 3, 64, 64, device=device)


def ours(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    geometry = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "dilation": (1, 1)}
    return conv_transpose(x, weight, act_out="tanh", **geometry)[0]


def theirs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose2d(x, weight, None, 2, 1).tanh()


def forward_of(function, x, weight, grad, layout):
    inputs = [t.contiguous(memory_format=layout) for t in (x, weight)]

    def run():
        with torch.no_grad():
            function(*inputs)

    return run


def backward_of(function, x, weight, grad, layout):
    """Forward and backward."""
    leaves = [t.contiguous(memory_format=layout).requires_grad_() for t in (x.clone(), weight.clone())]
    upstream = grad.contiguous(memory_format=layout)
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)


# What is timed -> how, at least how many times as fast as eager's faster layout, and how many products
DIRECTIONS = {"forward": (forward_of, 1.5, 1), "forward + backward": (backward_of, 1.0, 3)}


@pytest.mark.parametrize("what", DIRECTIONS)
def test_image_layer(what, ratio, device):
    """64 channels at 32x32 to images of 64x64, and tanh."""
    x, weight, grad = image_layer(device)
    assert (ours(x.double(), weight.double()) - theirs(x.double(), weight.double())).abs().max() < 1e-13
    make, goal, products = DIRECTIONS[what]
    candidates = {
        "fastgan": make(ours, x, weight, grad, LAST),
        "eager": make(theirs, x, weight, grad, torch.contiguous_format),
        "eager, channels-last": make(theirs, x, weight, grad, LAST),
    }
    name = f"image layer 32x32x64 to 64x64x3, tanh, batch 64, {what}"
    sizes = {"bytes": x.nbytes + grad.nbytes, "flops": products * 2 * x.numel() * 3 * 16}
    case = ratio("fused_block", name, candidates, "fastgan", **sizes)
    fastest = min(("eager", "eager, channels-last"), key=case.median)
    assert case.ratio(fastest).high >= goal, f"not {goal}x as fast as {fastest}"


BLOCKS = [(4, 512, 256), (8, 256, 128), (16, 128, 64)]  # (size of the input, channels before, channels)


@pytest.mark.parametrize(("size", "before", "width"), BLOCKS)
def test_block(size, before, width, ratio, device):
    """One block between others: normalisation and ReLU, transposed convolution, and statistics for the next."""
    batch = {"cpu": 64, "cuda": 256}[device]
    half = device == "cuda"
    x = torch.randn(batch, before, size, size, device=device).contiguous(memory_format=LAST).requires_grad_()
    grad = torch.randn(batch, width, 2 * size, 2 * size, device=device).contiguous(memory_format=LAST)
    layers = [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False)]
    network = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU()).to(device, memory_format=LAST)
    compiled = torch.compile(copy.deepcopy(network), mode="max-autotune" if half else "default")
    networks = {"fused": fuse(copy.deepcopy(network)), "eager, channels-last": network, "compiled": compiled}

    def step(network):
        def run():
            x.grad = None
            for parameter in network.parameters():
                parameter.grad = None
            with torch.autocast(device, torch.bfloat16, enabled=half):
                y = network(x)
            y.backward(grad.to(y.dtype))

        return run

    flops = 3 * 2 * x.numel() * width * 16
    bytes_ = (4 * x.numel() + 7 * grad.numel()) * (2 if half else 4)
    # Forward: x in, y out, y in, a out. Backward: y and grad twice in, dy out, dy twice in, x in and once more, dx out
    ratio(
        "fused_block",
        f"BatchNorm, ReLU, {size}x{size}x{before} to {2 * size}x{2 * size}x{width}, BatchNorm, ReLU, batch {batch}",
        {name: step(network) for name, network in networks.items()},
        "fused",
        bytes=bytes_,
        flops=flops,
    )
