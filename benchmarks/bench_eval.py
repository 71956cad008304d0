"""FID of a folder of images, end to end, against the way of pytorch-fid and clean-fid with the same network.

Theirs: files decoded by a DataLoader, the Inception in eager PyTorch with its BatchNorms, contiguous (and beside it
channels-last, which the packages do not do), statistics by NumPy, `scipy.linalg.sqrtm`. The real side is given as
statistics to all. `--images N`: how many images; default 10,000 on a GPU, and 32 on a CPU. Of fewer than 10,000 the
features alone are timed: the distance of so few images says nothing about many. 10,000 take an hour on a CPU: there
ours and the package's own way are timed once, in turn quarter by quarter.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastgan import bench, metrics
from fastgan.features import extractor, inception
from fastgan.features.weights import Weights
from fastgan.metrics.sources import features_of
from tools.parity_networks import weights

SIDE, BATCH = 64, 50  # pytorch-fid's batch

Array = np.ndarray[Any, Any]


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
) -> Array:
    loader = torch.utils.data.DataLoader(
        Files(folder, clean), BATCH, num_workers=min(8, len(os.sched_getaffinity(0))), pin_memory=device == "cuda"
    )

    def batches() -> Iterator[Array]:
        for batch in loader:
            x = batch.to(device)
            with torch.no_grad():
                if clean:
                    x = (x - 128) / 128
                else:
                    x = 2 * F.interpolate(x, (inception.SIDE,) * 2, mode="bilinear", align_corners=False) - 1
                yield network(x.contiguous(memory_format=layout)).cpu().numpy()

    return np.concatenate(list(batches()))


def their_distance(features: Array, mu: Array, sigma: Array) -> float:
    from scipy import linalg

    own_mu, own_sigma = features.mean(0), np.cov(features, rowvar=False)
    root = linalg.sqrtm(own_sigma @ sigma)
    return float(((own_mu - mu) ** 2).sum() + np.trace(own_sigma) + np.trace(sigma) - 2 * np.trace(root).real)


@pytest.fixture(scope="module")
def plain(device: str) -> nn.Module:
    return plain_inception().to(device)


def images(folder: Path, count: int, seed: int) -> Path:
    """A folder of so many PNGs."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))  # smooth, as pictures are
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:06}.png")
    return folder


Features = Callable[[Path], Array]


@pytest.fixture
def ways(
    device: str, plain: nn.Module, monkeypatch: pytest.MonkeyPatch, resize: str, package: str
) -> dict[str, Features]:
    """Features of a folder, [n, d], by name."""
    state = {name: value.cpu() for name, value in plain.state_dict().items()}
    monkeypatch.setattr(extractor, "obtain", lambda *_, **__: Weights(state, "random", "0" * 64, "random"))
    extract = extractor.open_extractor("inception", resize=resize, device=device)
    # A copy of the network in the other layout, for the third candidate.
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    clean = resize == "clean"
    return {
        "fastgan": lambda folder: torch.cat(list(features_of(folder, extract, batch_size=BATCH))).cpu().numpy(),
        f"{package}'s way": lambda folder: their_features(folder, plain, device, clean),
        f"{package}'s way, channels-last": lambda folder: their_features(
            folder, last, device, clean, torch.channels_last
        ),
    }


@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize(("resize", "package"), [("pytorch", "pytorch-fid"), ("clean", "clean-fid")])
def test_fid_of_a_folder(ratio, device, request, tmp_path, ways, resize):  # type: ignore[no-untyped-def]
    count = request.config.getoption("--images") or (10_000 if device == "cuda" else 32)
    few = images(tmp_path / "few", min(count, BATCH), 0)
    found, *others = (way(few) for way in ways.values())
    for expected in others:  # TF32 on a GPU; fp32 elsewhere
        assert np.linalg.norm(found - expected) <= (1e-2 if device == "cuda" else 1e-5) * np.linalg.norm(expected)
    if count < 10_000:
        folder = images(tmp_path / "all", count, 0)
        candidates = {name: partial(way, folder) for name, way in ways.items()}
        ratio("eval", f"features of {count:,} images, {resize}", candidates, "fastgan")
        return
    quarters = [images(tmp_path / f"quarter{q}", count // 4, q) for q in range(4)]
    rounds = 3
    if device == "cpu":
        ways, rounds = dict(islice(ways.items(), 2)), 1
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        times, values = in_turn(ways, quarters)
        assert max(values) - min(values) <= (2e-2 if device == "cuda" else 1e-3) * min(values)
        for name, total in times.items():
            seconds[name].append(float(f"{total:.5g}"))
    ratio.keep(f"fid_{resize}", bench.Case(f"FID of {count:,} images, {resize}", "fastgan", seconds))


def in_turn(ways: dict[str, Features], quarters: list[Path]) -> tuple[dict[str, float], list[float]]:
    """Seconds of each way for its features and its distance, and the distances."""
    seconds = dict.fromkeys(ways, 0.0)
    features: dict[str, list[Array]] = {name: [] for name in ways}
    for quarter in quarters:
        for name, way in ways.items():
            start = time.perf_counter()
            features[name].append(way(quarter))
            seconds[name] += time.perf_counter() - start
    real = metrics.FeatureStatistics().update(np.concatenate(features["fastgan"])[::2] + np.float32(0.1))
    mu, sigma = real.mean().numpy(), real.cov().numpy()
    values = []
    for name, parts in features.items():
        start = time.perf_counter()
        fake = np.concatenate(parts)
        values.append(metrics.fid(real, fake).value if name == "fastgan" else their_distance(fake, mu, sigma))
        seconds[name] += time.perf_counter() - start
    return seconds, values
