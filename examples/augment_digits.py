"""Does a conditional GAN help a classifier that has 20 real digits a class?

    python examples/augment_digits.py [KIMG] [SEEDS]

For each seed: 20 digits of each class are drawn, a conditional GAN is trained on these 200 alone (for KIMG thousand
images, 30 by default), its samples are added to them, and a classifier (a support vector machine on 8x8 pixels) is
scored on the 1,597 digits that neither has seen. Beside it the same number of real digits moved by up to a pixel,
which is what the GAN has to be better than. About a minute of one CPU core per seed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC
from torch import Tensor

from fastgan.augment import Augment
from fastgan.contract import Batch, ImageShape
from fastgan.data import DataOptions, open_images
from fastgan.gans import ConditionalGAN
from fastgan.models import Dense
from fastgan.optim import Averaging, Optimizer
from fastgan.pictures import picture_latents, sample_images
from fastgan.schedule import Schedule
from fastgan.step import Step, new_state

SIZE, A_CLASS, BATCH = 16, 20, 50
ADDED = (20, 100, 400)  # generated digits per class


def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits [N, 1, 16, 16] in [-1, 1], and their classes."""
    images = open_images(DataOptions(path="digits", size=SIZE, channels=1))
    assert images.labels is not None
    pixels = torch.from_numpy(images.read(np.arange(len(images)))).permute(0, 3, 1, 2)
    return pixels / 127.5 - 1, torch.from_numpy(images.labels)


def few_of_each(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of A_CLASS digits of each class."""
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order[labels[order] == label][:A_CLASS] for label in range(10)])


def batches(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Batch]:
    sample = 0
    while True:
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(BATCH):
            yield Batch(images[rows], labels[rows], torch.arange(sample, sample + len(rows)))
            sample += len(rows)


def generated(images: Tensor, labels: Tensor, kimg: float, seed: int) -> tuple[Tensor, Tensor]:
    """4,000 digits of a conditional GAN that was trained on `images` alone, each class in turn."""
    fading = Schedule(3.0, 0.3, finish=0.6)
    augment = Augment("diffaugment", policy=("translation",))
    system = ConditionalGAN(
        Dense(), latent=32, loss="relativistic", r1=fading, r2=fading, penalty_every=4, augment=augment
    )
    same = Optimizer(lr=Schedule(1e-3, 0.0, begin=0.6), beta1=0.0, beta2=0.99)
    averaging = Averaging(halflife_kimg=5.0, rampup=0.1)
    image = ImageShape(1, SIZE, classes=10)
    optimizers = {"generator": same, "critic": same}
    state = new_state(system, image, optimizers, averaging, seed=seed, device=torch.device("cpu"))
    step = Step(system, state, averaging, seed=seed, batch=BATCH, total=round(kimg * 1000))
    data = batches(images, labels, torch.Generator().manual_seed(seed))
    while state.samples < kimg * 1000:
        step(lambda: next(data))
    asked = torch.arange(10 * max(ADDED)) % 10
    return sample_images(system, state.averages, picture_latents(system, range(len(asked)), state.device), asked), asked


def moved(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """4,000 of the real digits, each class in turn, moved by up to a pixel of the 8x8 original."""
    asked = torch.arange(10 * max(ADDED)) % 10
    rows = [torch.nonzero(labels == label).flatten() for label in range(10)]
    chosen = torch.stack([rows[k][torch.randint(A_CLASS, (), generator=generator)] for k in asked.tolist()])
    shifts = torch.randint(-2, 3, (len(asked), 2), generator=generator).tolist()
    return torch.stack([images[i].roll((dy, dx), (1, 2)) for i, (dy, dx) in zip(chosen, shifts, strict=True)]), asked


def features(images: Tensor) -> NDArray[np.float64]:
    """[N, 64]: means of 2x2 blocks."""
    small: NDArray[np.float64] = torch.nn.functional.avg_pool2d(images, SIZE // 8).flatten(1).double().numpy()
    return small


def accuracy(images: Tensor, labels: Tensor, of: Tensor, truth: Tensor) -> float:
    classifier = SVC(C=10, gamma=0.03).fit(features(images), labels.numpy())
    return float((classifier.predict(features(of)) == truth.numpy()).mean())


def main(kimg: float, seeds: int) -> None:
    torch.set_num_threads(1)
    images, labels = digits()
    scores: dict[str, list[float]] = {}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        few = few_of_each(labels, generator)
        held_out = torch.ones(len(labels), dtype=torch.bool)
        held_out[few] = False
        real, truth = images[few], labels[few]
        additions = {
            "GAN": generated(real, truth, kimg, seed),
            "moved": moved(real, truth, generator),
        }
        scores.setdefault("20 real digits a class", []).append(
            accuracy(real, truth, images[held_out], labels[held_out])
        )
        for kind, (more, classes) in additions.items():
            for count in ADDED:
                both = torch.cat([real, more[: 10 * count]]), torch.cat([truth, classes[: 10 * count]])
                name = f"and {count} a class, {'of the GAN' if kind == 'GAN' else 'moved by up to a pixel'}"
                scores.setdefault(name, []).append(accuracy(*both, images[held_out], labels[held_out]))
    print(
        f"| trained on ({kimg:g} kimg of the GAN) | accuracy on held-out digits, mean of {seeds} | by seed |\n"
        "|---|---|---|"
    )
    for name, found in scores.items():
        print(f"| {name} | {mean(found):.1%} | {', '.join(f'{value:.1%}' for value in found)} |")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
