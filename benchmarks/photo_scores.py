"""What pictures of the photographs' patches are scored by: features that need no download, and a judge of classes.

features   384 numbers of a 64x64 picture: mean and deviation of each of 8x8 squares, in each colour
distance   Frechet distance of such features; it compares rows of one table and nothing else
Judge      a support vector machine that tells the seven photographs apart by the same features
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fastgan.data import ImageSet
from fastgan.metrics import frechet_distance
from fastgan.pictures import pictured

SIZE, EACH = 64, 200


def features(images: Tensor) -> NDArray[np.float64]:
    """[N, 384] of images [N, 3, 64, 64] in [-1, 1]."""
    images = images.clamp(-1, 1)
    mean = avg_pool2d(images, SIZE // 8)
    deviation = (avg_pool2d(images.square(), SIZE // 8) - mean.square()).clamp(min=0).sqrt()
    found: NDArray[np.float64] = torch.cat([mean, deviation], 1).flatten(1).double().numpy()
    return found


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    moments = [torch.from_numpy(m) for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
    return float(frechet_distance(*moments))


def real(images: ImageSet, first: int, count: int) -> Tensor:
    """Patches number `first` to `first + count` of a shuffled set, each class in turn: [count, 3, 64, 64]."""
    pixels = torch.from_numpy(images.read(pictured(images, range(first, first + count)))).permute(0, 3, 1, 2)
    return pixels / 127.5 - 1


class Judge:
    """Of samples, `EACH` of each class: label agreement, and distance to as many real patches."""

    def __init__(self, images: ImageSet) -> None:
        classes = len(images.classes)
        self.count = classes * EACH
        self.asked = torch.arange(self.count) % classes
        fitted = [features(real(images, part * self.count, self.count)) for part in range(1, 4)]
        self.known = features(real(images, 0, self.count))
        self.classifier = make_pipeline(StandardScaler(), SVC(C=10))
        self.classifier.fit(np.concatenate(fitted), np.tile(self.asked.numpy(), len(fitted)))
        self.of_reals = {
            "label agreement": self.agreement(self.known),
            "distance": distance(fitted[0], self.known),
        }

    def agreement(self, found: NDArray[np.float64]) -> float:
        """Share of the features [N, 384] that are taken for the class asked for."""
        return float(self.classifier.score(found, self.asked.numpy()))

    def scores(self, made: Tensor) -> dict[str, float]:
        """Of samples made for the classes `asked`."""
        found = features(made)
        return {"label agreement": self.agreement(found), "distance": distance(found, self.known)}
