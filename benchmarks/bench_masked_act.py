"""masked_act: the activation that keeps one bit per element, and the multiplication by its slopes, against PyTorch's.

leaky_relu_ keeps nothing by itself: autograd then holds on to its result, 32 bits per element, and leaky_relu_backward
reads that where apply_mask_ reads the mask. The slope is 1 here, which is no special case for either side and leaves
the random numbers as they are: with 0.2, a thousand calls in place would end among the denormal numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastgan.kernels.masked_act import CASES, apply_mask, apply_mask_, masked_act, masked_act_

# The activations of a DCGAN-64 critic, batch 32
LAYERS = [CASES["dcgan-64 critic"][0], (32, 128, 16, 16), (32, 256, 8, 8), (32, 512, 4, 4)]
SLOPE = 1.0
BACKWARD = torch.ops.aten.leaky_relu_backward


@pytest.fixture(params=["contiguous", "channels-last"])
def layers(request, device):
    """What it is called, and z, u, bias and scale of every layer."""
    layout = torch.channels_last if request.param == "channels-last" else torch.contiguous_format

    def images(shape):
        return torch.randn(shape, device=device).contiguous(memory_format=layout)

    tensors = []
    for shape in LAYERS:
        bias, scale = 0.1 * torch.randn(shape[1], device=device), torch.randn(shape[0], device=device)
        z, u = images(shape), images(shape)
        check(z, u, bias, scale)
        tensors.append((z, u, bias, scale))
    return f"dcgan-64 critic, batch {LAYERS[0][0]}, {request.param}", tensors


def check(z, u, bias, scale):
    """Against PyTorch, with a slope that shows."""
    y = z + bias[:, None, None]
    a, mask = masked_act(z, 0.2, bias)
    assert torch.equal(a, F.leaky_relu(y, 0.2)), "a is wrong"
    assert torch.equal(apply_mask(u, mask, 0.2), BACKWARD(u, y, 0.2, False)), "M u is wrong"
    exact = BACKWARD((u.double() + scale.double()[:, None, None, None] * bias.double()[:, None, None]), y, 0.2, False)
    error = (apply_mask(u, mask, 0.2, bias, scale) - exact).norm() / exact.norm()
    assert error < 2e-7, f"M (u + s b) is wrong by {error}"


def traffic(tensors):
    """Bytes: every element is read and written once, and so is or does its bit."""
    return sum(2 * z.nbytes + z.numel() // 8 for z, *_ in tensors)


def test_activation(layers, ratio):
    """Pass 1 of the shared sweep, with the bias in the convolution before it."""
    name, tensors = layers
    theirs = [z.clone() for z, *_ in tensors]
    ratio(
        "masked_act",
        f"activation, {name}",
        {
            "fastgan masked_act_": lambda: [masked_act_(z, SLOPE) for z, *_ in tensors],
            "torch leaky_relu_": lambda: [F.leaky_relu_(z, SLOPE) for z in theirs],
        },
        ours="fastgan masked_act_",
        bytes=traffic(tensors),
    )


def test_bias_and_activation(layers, ratio):
    """Pass 1 with the bias here."""
    name, tensors = layers
    tensors = [(z, 1e-4 * bias[:, None, None]) for z, _, bias, _ in tensors]  # is added thousands of times
    theirs = [(z.clone(), bias) for z, bias in tensors]
    ratio(
        "masked_act",
        f"bias and activation, {name}",
        {
            "fastgan masked_act_": lambda: [masked_act_(z, SLOPE, bias.flatten()) for z, bias in tensors],
            "torch add_, leaky_relu_": lambda: [F.leaky_relu_(z.add_(bias), SLOPE) for z, bias in theirs],
        },
        ours="fastgan masked_act_",
        bytes=traffic(tensors),
    )


def test_slopes(layers, ratio):
    """Pass 2: in place, and for comparison into new memory, as autograd does it."""
    name, tensors = layers
    kept = [(u, masked_act(z, SLOPE)[1]) for z, u, *_ in tensors]
    theirs = [(u.clone(), F.leaky_relu(z, SLOPE)) for z, u, *_ in tensors]
    ratio(
        "masked_act",
        f"slopes, {name}",
        {
            "fastgan apply_mask_": lambda: [apply_mask_(u, mask, SLOPE) for u, mask in kept],
            "torch leaky_relu_backward, in place": lambda: [
                BACKWARD.grad_input(u, a, SLOPE, True, grad_input=u) for u, a in theirs
            ],
            "torch leaky_relu_backward": lambda: [BACKWARD(u, a, SLOPE, True) for u, a in theirs],
        },
        ours="fastgan apply_mask_",
        bytes=traffic(tensors),
    )


def test_slopes_with_the_bias(layers, ratio):
    """Pass 3: M (u + s_n b)."""
    name, tensors = layers
    kept = [(u, masked_act(z, SLOPE)[1], 1e-4 * bias, scale) for z, u, bias, scale in tensors]
    theirs = [
        (u.clone(), F.leaky_relu(z, SLOPE), 1e-4 * bias[:, None, None], scale[:, None, None, None])
        for z, u, bias, scale in tensors
    ]
    ratio(
        "masked_act",
        f"slopes with the bias, {name}",
        {
            "fastgan apply_mask_": lambda: [apply_mask_(u, mask, SLOPE, bias, scale) for u, mask, bias, scale in kept],
            "torch addcmul_, leaky_relu_backward, in place": lambda: [
                BACKWARD.grad_input(u.addcmul_(scale, bias), a, SLOPE, True, grad_input=u)
                for u, a, bias, scale in theirs
            ],
        },
        ours="fastgan apply_mask_",
        bytes=traffic(tensors),
    )
