"""FID of a folder of images, end to end, against the way of pytorch-fid and clean-fid with the same network.

Theirs: files decoded by a DataLoader, the Inception in eager PyTorch with its BatchNorms, contiguous (and beside it
channels-last, which the packages do not do), statistics by NumPy, `scipy.linalg.sqrtm`. The real side is given as
statistics to all. `--images N`: how many images; default 10,000 on a GPU, and 32 on a CPU, where the features alone are
timed: the distance of so few images says nothing about many.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastgan import metrics
from fastgan.features import extractor, inception
from fastgan.features.weights import Weights
from fastgan.metrics.sources import features_of
from tools.parity_networks import weights

SIDE, BATCH = 64, 50  # pytorch-fid's batch


class Unfolded(nn.Module):
    """Convolution, BatchNorm, ReLU, as the published networks have them."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, bias=False
        )
        self.bn = nn.BatchNorm2d(like.out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def plain_inception() -> inception.Inception:
    """The same network without folding, contiguous, with random weights."""
    with torch.device("meta"):
        network = inception.Inception()
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, inception.Convolution):
                    setattr(parent, name, Unfolded(child.conv))
    network.to_empty(device="cpu")
    shapes = {name: tuple(slot.shape) for name, slot in network.state_dict().items()}
    state = {name: torch.from_numpy(value) for name, value in weights(shapes).items()}
    network.load_state_dict(state, strict=False)  # num_batches_tracked counts for nothing in evaluation
    return network.eval().requires_grad_(False)


class Files(torch.utils.data.Dataset[Tensor]):
    """As pytorch-fid reads a folder; with `clean` resized as clean-fid does it, while loading."""

    def __init__(self, folder: Path, clean: bool) -> None:
        self.paths, self.clean = sorted(folder.iterdir()), clean

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.asarray(Image.open(self.paths[index]).convert("RGB"))
        if not self.clean:
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div(255)
        planes = [Image.fromarray(pixels[:, :, c].astype(np.float32)) for c in range(3)]
        large = [np.asarray(p.resize((inception.SIDE,) * 2, Image.Resampling.BICUBIC)).clip(0, 255) for p in planes]
        return torch.from_numpy(np.stack(large))


def their_features(
    folder: Path, network: nn.Module, device: str, clean: bool, layout: torch.memory_format = torch.contiguous_format
) -> np.ndarray[Any, Any]:
    loader = torch.utils.data.DataLoader(
        Files(folder, clean), BATCH, num_workers=min(8, len(os.sched_getaffinity(0))), pin_memory=device == "cuda"
    )

    def batches() -> Iterator[np.ndarray[Any, Any]]:
        for batch in loader:
            x = batch.to(device)
            with torch.no_grad():
                if clean:
                    x = (x - 128) / 128
                else:
                    x = 2 * F.interpolate(x, (inception.SIDE,) * 2, mode="bilinear", align_corners=False) - 1
                yield network(x.contiguous(memory_format=layout)).cpu().numpy()

    return np.concatenate(list(batches()))


def their_distance(features: np.ndarray[Any, Any], mu: np.ndarray[Any, Any], sigma: np.ndarray[Any, Any]) -> float:
    from scipy import linalg

    own_mu, own_sigma = features.mean(0), np.cov(features, rowvar=False)
    root = linalg.sqrtm(own_sigma @ sigma)
    return float(((own_mu - mu) ** 2).sum() + np.trace(own_sigma) + np.trace(sigma) - 2 * np.trace(root).real)


@pytest.fixture(scope="module")
def plain(device: str) -> nn.Module:
    return plain_inception().to(device)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    count = request.config.getoption("--images") or (10_000 if device == "cuda" else 32)
    place = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))  # smooth, as pictures are
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{number:06}.png")
    return place


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("resize", "package"), [("pytorch", "pytorch-fid"), ("clean", "clean-fid")])
def test_fid_of_a_folder(ratio, device, plain, folder, monkeypatch, resize, package):  # type: ignore[no-untyped-def]
    count = len(list(folder.iterdir()))
    state = {name: value.cpu() for name, value in plain.state_dict().items()}
    monkeypatch.setattr(extractor, "obtain", lambda *_, **__: Weights(state, "random", "0" * 64, "random"))
    extract = extractor.open_extractor("inception", resize=resize, device=device)

    def ours() -> Tensor:
        return torch.cat(list(features_of(folder, extract, batch_size=BATCH)))

    def theirs() -> np.ndarray[Any, Any]:
        return their_features(folder, plain, device, resize == "clean")

    # A copy of the network in the other layout, for the third candidate.
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)

    def theirs_last() -> np.ndarray[Any, Any]:
        return their_features(folder, last, device, resize == "clean", torch.channels_last)

    expected, found = theirs(), ours().cpu().numpy()
    # TF32 on a GPU; fp32 elsewhere.
    assert np.linalg.norm(found - expected) <= (1e-2 if device == "cuda" else 1e-5) * np.linalg.norm(expected)
    package = f"{package}'s way"
    if count < 10_000:
        candidates = {"fastgan": ours, package: theirs, f"{package}, channels-last": theirs_last}
        ratio("eval", f"features of {count:,} images, {resize}", candidates, "fastgan")
        return
    real = metrics.FeatureStatistics().update(expected[::2] + np.float32(0.1))
    mu, sigma = real.mean().numpy(), real.cov().numpy()
    candidates = {
        "fastgan": lambda: metrics.fid(real, folder, extract, batch_size=BATCH).value,
        package: lambda: their_distance(theirs(), mu, sigma),
        f"{package}, channels-last": lambda: their_distance(theirs_last(), mu, sigma),
    }
    values = [candidate() for candidate in candidates.values()]
    assert values[0] == pytest.approx(values[1], rel=2e-2 if device == "cuda" else 1e-3)
    ratio("eval", f"FID of {count:,} images, {resize}", candidates, "fastgan", rounds=3)
