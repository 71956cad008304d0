"""Conditional GANs on 64x64 patches of seven photographs, beside the plain loop of tutorials, from the same run.

    python -m benchmarks.conditional_photos [--kimg 20] [--width 16] [--pictures FOLDER]

Rows: labels by projection, by concatenation, and a plain PyTorch loop of the arrangement that public collections of
GANs have: an embedding beside z and another as a plane beside the image, binary cross-entropy, Adam (0.5, 0.999), fakes
with random labels, no penalty, no average of weights. All have DCGAN networks of the same width, batch 64, and see as
many images. Scores, of 1,400 samples, 200 of each class:

    agreement  how many a classifier of the photographs (logistic, on 8x8 means and deviations of the pixels) takes for
               the class asked for; its own accuracy on patches that it was not fitted on is printed first
    distance   Frechet distance of the same 384 features to those of 1,400 real patches; the same between two sets of
               real patches is printed first. It compares rows of this table and nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from fastgan.assemble import build_state, new_step
from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.feeder import Feeder
from fastgan.gans import ConditionalGAN
from fastgan.metrics import frechet_distance
from fastgan.models import DCGAN
from fastgan.options import Config, with_data
from fastgan.pictures import picture_latents, pictured, sample_images
from fastgan.presets import PRESETS
from fastgan.run.images import grid, save_png

SIZE, BATCH, EACH = 64, 64, 200
Sampler = Callable[[Tensor, Tensor], Tensor]  # (numbers of the samples [N], labels [N]) -> images


def ours(labels: str, images: ImageSet, kimg: float, width: int) -> Sampler:
    networks = DCGAN(generator_width=width, critic_width=width, critic_norm="none")
    base = PRESETS["conditional-64"]
    assert isinstance(base.system, ConditionalGAN)
    config: Config = replace(
        base,
        system=replace(base.system, networks=networks, labels=labels),
        data=DataOptions(path="photos", size=SIZE),
        averaging=replace(base.averaging, halflife_kimg=1.0),
        kimg=kimg,
        batch=BATCH,
        device="cpu",
    )
    config = with_data(config, images)
    state = build_state(config, torch.device("cpu"))
    step = new_step(config, state)
    with Feeder(images, seed=0, batch=BATCH) as feeder:
        while state.samples < kimg * 1000:
            step(feeder.__next__)
    system = config.system
    return lambda numbers, asked: sample_images(
        system, state.averages, picture_latents(system, numbers.tolist(), state.device), asked
    )


class PlainGenerator(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, 100)
        layers: list[nn.Module] = []
        before = 200
        for i, channels in enumerate((8 * width, 4 * width, 2 * width, width)):
            layers.append(nn.ConvTranspose2d(before, channels, 4, 2 if i else 1, 1 if i else 0, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU(True)]
            before = channels
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(before, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([z, self.label(labels)], 1)[:, :, None, None])
        return out


class PlainCritic(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, SIZE * SIZE)
        layers: list[nn.Module] = []
        before = 4
        for i, channels in enumerate((width, 2 * width, 4 * width, 8 * width)):
            layers.append(nn.Conv2d(before, channels, 4, 2, 1, bias=not i))
            layers += [nn.BatchNorm2d(channels)] if i else []
            layers.append(nn.LeakyReLU(0.2, True))
            before = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        plane = self.label(labels).view(-1, 1, SIZE, SIZE)
        out: Tensor = self.layers(torch.cat([x, plane], 1))
        return out.flatten()


def plain(images: ImageSet, kimg: float, width: int) -> Sampler:
    torch.manual_seed(0)
    classes = len(images.classes)
    generator, critic = PlainGenerator(classes, width), PlainCritic(classes, width)
    for module in (*generator.modules(), *critic.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
    of_generator = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    of_critic = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
    one, zero = torch.ones(BATCH), torch.zeros(BATCH)
    with Feeder(images, seed=0, batch=BATCH) as feeder:
        for _ in range(round(kimg * 1000 / BATCH)):
            batch = next(feeder)
            assert batch.labels is not None
            asked = torch.randint(classes, (BATCH,))
            fake = generator(torch.randn(BATCH, 100), asked)
            of_generator.zero_grad()
            binary_cross_entropy_with_logits(critic(fake, asked), one).backward()
            of_generator.step()
            of_critic.zero_grad()
            on_real = binary_cross_entropy_with_logits(critic(batch.images, batch.labels), one)
            on_fake = binary_cross_entropy_with_logits(critic(fake.detach(), asked), zero)
            ((on_real + on_fake) / 2).backward()
            of_critic.step()
    generator.eval()

    @torch.no_grad()
    def sample(numbers: Tensor, asked: Tensor) -> Tensor:
        z = torch.randn(len(numbers), 100, generator=torch.Generator().manual_seed(1))
        return torch.cat([generator(*part) for part in zip(z.split(64), asked.split(64), strict=True)])

    return sample


def features(images: Tensor) -> NDArray[np.float64]:
    """[N, 384]: mean and deviation of each of 8x8 squares, in each colour."""
    mean = avg_pool2d(images, SIZE // 8)
    deviation = (avg_pool2d(images.square(), SIZE // 8) - mean.square()).clamp(min=0).sqrt()
    found: NDArray[np.float64] = torch.cat([mean, deviation], 1).flatten(1).double().numpy()
    return found


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    moments = [torch.from_numpy(m) for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
    return float(frechet_distance(*moments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kimg", type=float, default=20.0)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = open_images(DataOptions(path="photos", size=SIZE))
    assert images.labels is not None
    classes = len(images.classes)
    count = classes * EACH
    asked = torch.arange(count) % classes

    def real(first: int) -> NDArray[np.float64]:
        pixels = torch.from_numpy(images.read(pictured(images, range(first, first + count)))).permute(0, 3, 1, 2)
        return features(pixels / 127.5 - 1)

    fitted = [real(part * count) for part in range(1, 4)]
    known, other = fitted[0], real(0)
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    judge.fit(np.concatenate(fitted), np.tile(asked.numpy(), len(fitted)))
    print(f"the judge is right for {judge.score(other, asked.numpy()):.1%} of other patches; distance of real to real "
          f"{distance(known, other):.3f}")  # fmt: skip
    print(f"| {options.kimg:g} kimg, width {options.width} | agreement | distance | seconds |\n|---|---|---|---|")
    for name, train in (
        ("labels by projection", lambda: ours("projection", images, options.kimg, options.width)),
        ("labels by concatenation", lambda: ours("concatenation", images, options.kimg, options.width)),
        ("plain loop", lambda: plain(images, options.kimg, options.width)),
    ):
        began = time.perf_counter()
        sampler = train()
        seconds = time.perf_counter() - began
        made = sampler(torch.arange(count), asked)
        seen = features(made)
        print(
            f"| {name} | {judge.score(seen, asked.numpy()):.1%} | {distance(seen, other):.3f} | {seconds:.0f} |",
            flush=True,
        )
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            save_png(grid(made[: 8 * classes], columns=classes), options.pictures / f"{name.replace(' ', '-')}.png")


if __name__ == "__main__":
    main()
