"""Spectral normalisation: the singular value itself, torch's own as the reference, and no copies in channels-last."""

from __future__ import annotations

import copy

import pytest
import torch
from host_reads import LayoutCopies
from torch import nn
from torch.nn.utils import parametrizations

from fastgan.models.spectral import spectral_norm

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "linear": lambda: nn.Linear(5, 7),
    "1x1": lambda: nn.Conv2d(3, 2, 1),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_weight_has_norm_one(kind: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    raw = layer.weight.detach().clone()
    spectral_norm(layer)
    layer.to(memory_format=layout)
    for _ in range(300):
        weight = layer.weight.detach()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(weight, raw / torch.linalg.matrix_norm(raw.flatten(1), 2), rtol=1e-6, atol=1e-8)
    layer.eval()
    assert torch.equal(layer.weight, layer.weight), "nothing moves in evaluation"
    assert {name.split(".")[-1] for name in layer.state_dict()} == {"bias", "original", "_u", "_v"}


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_torch(kind: str) -> None:
    """With the same vectors; two forward passes before one backward, as a GAN does."""
    torch.manual_seed(1)
    ours = LAYERS[kind]().double()
    theirs = parametrizations.spectral_norm(copy.deepcopy(ours), n_power_iterations=200)
    spectral_norm(ours)
    for _ in range(200):
        ours.weight  # noqa: B018  (a step of the iteration)
    grads = []
    for layer in (ours, theirs):
        (layer.weight.pow(3).sum() + layer.weight.exp().sum()).backward()
        grads.append(layer.parametrizations.weight.original.grad)
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


def test_second_derivative_in_evaluation() -> None:
    layer = nn.Conv2d(2, 3, 3).double()
    spectral_norm(layer)
    norm = layer.eval().parametrizations.weight[0]
    assert torch.autograd.gradgradcheck(norm, layer.parametrizations.weight.original)


def test_no_copies_of_channels_last_weights() -> None:
    layer = nn.Conv2d(4, 6, 3)
    spectral_norm(layer)
    layer.to(memory_format=torch.channels_last)
    with LayoutCopies() as copies:
        layer.weight.square().sum().backward()
    assert not copies.found
    plain = parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    with LayoutCopies() as copies:
        plain.weight.square().sum().backward()
    assert copies.found, "what is measured here can be found"
