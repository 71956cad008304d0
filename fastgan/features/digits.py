"""A small classifier of handwritten digits, trained on the spot: features for scores of digits, without any download.

It learns the 1,797 digits of scikit-learn within seconds, on the CPU, from fixed seeds, and is kept in the cache
folder. Its scores compare runs on digits with each other, by the same weights (whose hash is recorded), and with
nothing that was published.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastgan.data.digits import load_digits
from fastgan.data.options import DataOptions
from fastgan.features.weights import Weights, cache_folder

SIDE = 16
TAPS = {"64": 64, "logits": 10}
EPOCHS, BATCH, RATE = 12, 64, 4e-3
HELD_OUT = 5  # every fifth digit is not learned, but counts for the accuracy
FILE = "digits-1.safetensors"  # another number for another network or training


class Digits(nn.Module):
    """x: [N, 1, 16, 16] in [0, 1] -> "64", the inner layer before its ReLU [N, 64], or "logits" [N, 10].

    The features are standardised: on the real digits each has mean 0 and variance 1.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.inner = nn.Linear(32 * 4 * 4, 64)
        self.classes = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("deviation", torch.ones(64))

    def forward(self, x: Tensor, tap: str = "64") -> Tensor:
        x = F.max_pool2d(self.first(x).relu(), 2)
        x = F.max_pool2d(self.second(x).relu(), 2)
        # Not rectified: units that never fire would be constants.
        features = (self.inner(x.flatten(1)) - self.mean) / self.deviation
        return features if tap == "64" else self.logits(features)

    def logits(self, features: Tensor) -> Tensor:
        """[N, 10] from tap "64"."""
        out: Tensor = self.classes((features * self.deviation + self.mean).relu())
        return out


def prepare(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] of any size -> [N, 1, 16, 16] in [0, 1]: mean of the channels, bilinear with antialiasing."""
    gray = images.float().mean(1, keepdim=True) / 255
    return F.interpolate(gray, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def train_digits() -> tuple[Digits, float]:
    """A trained network, and the share of the held-out digits that it gets right. The same weights every time.

    Raises FastganError without scikit-learn.
    """
    digits = load_digits(DataOptions(size=32, channels=1))
    assert digits.labels is not None
    images = prepare(torch.from_numpy(digits.read(np.arange(len(digits)))).permute(0, 3, 1, 2))
    labels = torch.from_numpy(digits.labels)
    learned = torch.arange(len(images)) % HELD_OUT != 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and with it the last digits, would hang on their number
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            network = Digits()
            _fit(network, images[learned], labels[learned])
        with torch.no_grad():
            features = network(images)
            network.mean, network.deviation = features.mean(0), features.std(0)
            right = network(images[~learned], "logits").argmax(1) == labels[~learned]
    finally:
        torch.set_num_threads(threads)
    return network.eval().requires_grad_(False), float(right.double().mean())


def _fit(network: Digits, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    for _ in range(EPOCHS):
        for part in torch.split(torch.randperm(len(images)), BATCH):
            # A pixel of shift in each direction: generated digits are not centred as strictly as the real ones.
            shift = torch.randint(-1, 2, (2,)).tolist()
            loss = F.cross_entropy(network(images[part].roll(shift, (2, 3)), "logits"), labels[part])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def load_digits_network(path: Path | None = None) -> tuple[Digits, Weights]:
    """The network from `path` (default: the cache folder), or trained now and kept there where that can be written."""
    path = path or cache_folder() / "weights" / FILE
    network = Digits()
    try:
        network.load_state_dict(load_file(path))
    except Exception:  # not there, damaged or of another make: it is only a cache
        network, _ = train_digits()
        with contextlib.suppress(OSError):  # then it is trained again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            save_file(network.state_dict(), temporary)
            temporary.replace(path)
    state = network.state_dict()
    digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
    return network.eval().requires_grad_(False), Weights(
        state, "digits", digest, "trained here on scikit-learn's digits"
    )
