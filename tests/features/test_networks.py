"""Feature networks against the packages that publish them, with the same random weights (tools/parity_networks.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.features import extractor, inception, lpips, vgg16
from fastgan.features.resize import pillow_bicubic
from fastgan.features.weights import Weights
from tools.parity_networks import KEPT, images, some, weights

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "networks.json").read_text())


def differs(found: Tensor, golden: list[float]) -> float:
    """Largest difference, as a share of the golden's norm per number."""
    expected = np.array(golden)
    scale = np.linalg.norm(expected) / len(expected) ** 0.5
    return float(np.abs(np.array(some(found.numpy())) - expected).max() / scale)


def tensors(shapes: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value).to(dtype) for name, value in weights(shapes).items()}


def published_inception(dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights under the published names."""
    with torch.device("meta"):
        network = inception.Inception()
    shapes = {name: tuple(slot.shape) for name, slot in network.state_dict().items()}
    for name in [name for name in shapes if name.endswith(".conv.bias")]:
        layer = name.removesuffix(".conv.bias")
        size = shapes.pop(name)
        shapes |= {f"{layer}.bn.{part}": size for part in ("weight", "bias", "running_mean", "running_var")}
    return tensors(shapes, dtype)


@pytest.fixture(scope="module")
def network() -> inception.Inception:
    return inception.load_inception(published_inception(torch.float64), "random")


@pytest.fixture(scope="module")
def taps(network: inception.Inception) -> dict[str, Tensor]:
    pixels = (torch.from_numpy(images(1, 1, 3, 299, 299)).double() - 128) / 128
    with torch.inference_mode():
        found = {tap: network(pixels, tap) for tap in ("64", "192", "768", "2048")}
        found["logits"] = network.logits(found["2048"], biased=True)
        found["logits_unbiased"] = network.logits(found["2048"])
    return found


@pytest.mark.parametrize("tap", inception.TAPS)
def test_every_tap_of_the_inception(taps: dict[str, Tensor], tap: str) -> None:
    assert taps[tap].shape == (1, inception.TAPS[tap])
    assert len(GOLDENS["inception"][tap]) == KEPT
    assert differs(taps[tap], GOLDENS["inception"][tap]) < 1e-6


def open_random(monkeypatch: pytest.MonkeyPatch, resize: str, layer: str = "2048") -> extractor.Extractor:
    found = Weights(published_inception(torch.float32), "random", "0" * 64, "random")
    monkeypatch.setattr(extractor, "obtain", lambda *_, **__: found)
    return extractor.open_extractor(f"inception:{layer}", resize=resize, device="cpu")


@pytest.mark.parametrize(
    ("resize", "golden"),
    [("tensorflow", GOLDENS["inception"]["fp32, from 64 pixels"]), ("pytorch", GOLDENS["pytorch_fid"]["2048"])],
)
def test_from_8_bit_pixels_to_features(monkeypatch: pytest.MonkeyPatch, resize: str, golden: list[float]) -> None:
    """All of it: resizing, scaling, network. In fp32, where folding the BatchNorms rounds differently."""
    found = open_random(monkeypatch, resize)(torch.from_numpy(images(2, 1, 3, 64, 64)))
    assert found.dtype == torch.float32
    assert differs(found, golden) < 1e-5


def test_features_do_not_hang_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    features = open_random(monkeypatch, "tensorflow", "192")
    pixels = torch.from_numpy(images(6, 3, 3, 40, 40))
    together = features(pixels)
    alone = torch.cat([features(one[None]) for one in pixels])
    assert (together - alone).abs().max() <= 2e-6 * together.abs().max()
    assert not together.requires_grad


def test_logits_as_layers(network: inception.Inception) -> None:
    pixels = torch.rand(1, 3, 80, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    pooled = network(pixels)
    assert torch.equal(network(pixels, "logits"), network.logits(pooled, biased=True))
    assert torch.equal(network(pixels, "logits_unbiased"), network.logits(pooled))


def test_clean_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(images(7, 1, 3, 50, 60))
    expected = inception.load_inception(published_inception(torch.float32), "random")
    found = open_random(monkeypatch, "clean", "64")(pixels)
    assert torch.allclose(found, expected((pillow_bicubic(pixels, 299) - 128) / 128, "64"), rtol=1e-5)


def test_weights_of_another_network_are_refused() -> None:
    state = published_inception(torch.float32)
    other = state | {"fc.weight": torch.zeros(1000, 2048)}  # torchvision's classes
    with pytest.raises(FastganError, match=r"file: expected fc.weight \[1008, 2048\], got \[1000, 2048\]"):
        inception.load_inception(other, "file")
    del state["Mixed_7c.branch3x3dbl_3b.bn.running_var"]
    with pytest.raises(FastganError, match=r"expected Mixed_7c.branch3x3dbl_3b.bn.running_var \[384\], got nothing"):
        inception.load_inception(state, "file")


def vgg_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(slot.shape) for name, slot in vgg16.VGG16().state_dict().items()}


def test_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = vgg_shapes()
    found = Weights(tensors(shapes, torch.float32), "random", "0" * 64, "random")
    monkeypatch.setattr(extractor, "obtain", lambda *_, **__: found)
    pixels = torch.from_numpy(images(3, 2, 3, 224, 224))
    for layer in vgg16.TAPS:
        features = extractor.open_extractor(f"vgg16:{layer}", device="cpu")(pixels)
        assert features.shape == (2, 4096)
        assert differs(features, GOLDENS["vgg16"][layer]) < 1e-5


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips(net: str) -> None:
    trunk = {k: v for k, v in vgg_shapes().items() if k.startswith("features.")}
    channels = vgg16.CHANNELS
    if net == "alex":
        with torch.device("meta"):
            trunk = {f"features.{k}": tuple(v.shape) for k, v in lpips.alex_trunk().state_dict().items()}
        channels = lpips.ALEX_CHANNELS
    heads = {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate(channels)}
    network = lpips.load_lpips(
        tensors(trunk, torch.float64), tensors(heads, torch.float64), net, ("the trunk", "the heads")
    )
    a, b = (torch.from_numpy(images(seed, 2, 3, 40, 48)).double() / 127.5 - 1 for seed in (4, 5))
    distances = network(a, b)
    assert distances.shape == (2,)
    assert differs(distances, GOLDENS["lpips"][net]) < 1e-6
    assert network(a, a).abs().max() == 0
    x = a[:1].clone().requires_grad_()
    assert torch.autograd.grad(network(x, b[:1]).sum(), x)[0].abs().sum() > 0
    gray = a[:, :1]
    assert torch.equal(
        network(gray, gray.flip(3)), network(gray.expand(-1, 3, -1, -1), gray.flip(3).expand(-1, 3, -1, -1))
    )
    with pytest.raises(FastganError, match=r"LPIPS: expected two float tensors .* got torch.float64 \[2, 3, 40, 48\]"):
        network(a, b[:, :, :8])


def test_lpips_with_heads_of_the_other_trunk() -> None:
    heads = {f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate(vgg16.CHANNELS)}
    with torch.device("meta"):
        shapes = {f"features.{k}": tuple(v.shape) for k, v in lpips.alex_trunk().state_dict().items()}
    with pytest.raises(FastganError, match=r"the heads: expected lin1.model.1.weight \[1, 192, 1, 1\], got \[1, 128"):
        lpips.load_lpips(tensors(shapes, torch.float32), heads, "alex", ("the trunk", "the heads"))
