"""Scores that need more than features of both sides, for `fastgan eval`.

Of a run's generator its path length, of its critic the calibration; of any images their diversity; and of images with
one right answer each, found by its file's name, the paired measures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from fastgan.contract import ImageShape, Samples, System
from fastgan.errors import FastganError
from fastgan.features import Extractor, open_extractor
from fastgan.features.lpips import load_lpips
from fastgan.features.weights import LPIPS_VGG, VGG16, obtain
from fastgan.metrics import (
    FeatureStatistics,
    Result,
    critic_calibration,
    diversity,
    ms_ssim,
    path_length,
    pixel_accuracy,
    psnr,
    ssim,
)
from fastgan.metrics.sources import Images
from fastgan.pictures import evaluating, picture_labels

PICTURES = 2000  # of which pairs are drawn for the diversity
PAIRS = 2000
TOLERANCE = 16.0  # of 255: a pixel that is off by no more than this is right
PAIRED_AT_ONCE = 256


@dataclass(frozen=True)
class Run:
    """Players of a trained run, averaged or not as asked for; the critic is never averaged."""

    system: System
    players: Mapping[str, nn.Module]
    image: ImageShape
    device: torch.device


@dataclass(frozen=True, eq=False)
class Distance:
    """Two batches of images [N, C, H, W], uint8 or in [-1, 1], -> [N], how unlike they look; `name` for the record."""

    name: str
    run: Callable[[Tensor, Tensor], Tensor]
    device: torch.device

    @property
    def warnings(self) -> tuple[str, ...]:
        return () if self.name.startswith("LPIPS") else (f"by the {self.name}, in place of LPIPS",)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.run(*(as_floats(x.to(self.device)) for x in (a, b)))


@dataclass(frozen=True)
class Given:
    """fake, real: both sides (real: None where --data was not asked for);  run: where fake is drawn from one;
    distance: opens the perceptual distance;  held_out: whether `real` is not what the run was trained on"""

    fake: Images
    real: Images | FeatureStatistics | None
    run: Run | None
    distance: Callable[[], Distance]
    samples: int
    batch: int
    held_out: bool = False


def as_floats(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1] fp32."""
    return images.float().sub(127.5).div(127.5) if images.dtype == torch.uint8 else images


def perceptual(features: str, device: torch.device, download: bool, progress: Callable[[int, int], None]) -> Distance:
    """LPIPS on VGG16; where the feature network is that of the digits, the squared distance of its features."""
    if features.partition(":")[0] == "digits":
        extract = open_extractor(features, device=device)
        return Distance(f"squared distance of {extract.name}", lambda a, b: _of_features(extract, a, b), device)
    trunk = obtain(VGG16, download=download, progress=progress)
    heads = obtain(LPIPS_VGG, download=download, progress=progress)
    network = load_lpips(trunk.tensors, heads.tensors, "vgg", (trunk.source, heads.source)).to(device)
    return Distance("LPIPS 0.1 (VGG16)", network, device)


def _of_features(extract: Extractor, a: Tensor, b: Tensor) -> Tensor:
    """Not rounded to 8 bits, unlike for other metrics: path length looks at small steps."""
    x, y = (extract.run(((z + 1) * 127.5).expand(-1, 3, -1, -1)).flatten(1).double() for z in (a, b))
    return (x - y).square().sum(1)


def of_path(given: Given) -> Result:
    """Perceptual path length in the space of the latents that the run was trained with."""
    run = given.run
    if run is None or not isinstance(run.system, Samples):
        raise FastganError("metric 'ppl' walks between latents: it needs a run whose generator starts from them")
    system, players = run.system, run.players
    uniform = getattr(system, "latent_distribution", "normal") == "uniform"
    size = int(getattr(system, "latent", 0))
    if not size:
        raise FastganError(f"metric 'ppl': {type(system).__name__} has no latents of a known size")

    def generate(points: Tensor) -> Tensor:
        half = picture_labels(run.image, range(len(points) // 2), run.device)
        labels = None if half is None else half.repeat(2)  # both ends of a step are of one class
        with evaluating(players) as dtype:
            return system.sample(players, points.to(dtype), labels).clamp(-1, 1)

    distance = given.distance()
    result = path_length(
        generate,
        distance,
        size,
        mapping=_cube if uniform else None,
        samples=given.samples,
        batch_size=given.batch,
        device=run.device,
    )
    return replace(result, warnings=(*result.warnings, *distance.warnings))


def _cube(z: Tensor) -> Tensor:
    """Standard normal numbers as uniform ones in [-1, 1], which such a run was trained with."""
    return torch.erf(z / 2**0.5)


def of_diversity(given: Given, distance: str) -> Result:
    """Mean distance, or MS-SSIM, of random pairs of the first pictures."""
    found = first_images(given.fake, min(PICTURES, given.samples), given.batch)
    if distance != "lpips":
        return replace(diversity(found, distance, pairs=PAIRS, batch_size=given.batch), name=f"diversity_{distance}")
    network = given.distance()
    result = diversity(found, network, pairs=PAIRS, batch_size=given.batch)
    return replace(result, name="diversity_lpips", warnings=(*result.warnings, *network.warnings))


def first_images(images: Images, count: int, batch: int) -> Tensor:
    """The first `count` images, uint8 [n, C, H, W]."""
    found: list[Tensor] = []
    for part in islice(images.batches(batch), -(-count // batch)):
        found.append(part.cpu())
    if not found:
        raise FastganError(f"{images.name}: expected images, got none")
    return torch.cat(found)[:count]


def of_critic(given: Given) -> Result:
    """How the run's critic scores real and generated images."""
    run, real = given.run, given.real
    if run is None or "critic" not in run.players or not isinstance(run.system, Samples):
        raise FastganError("metric 'critic' needs a run that has a critic and whose generator starts from latents")
    if len(inspect.signature(run.players["critic"].forward).parameters) > 1:
        raise FastganError("metric 'critic': this run's critic takes more than images (labels), which is not supported")
    if not isinstance(real, Images):
        raise FastganError("metric 'critic' needs real images, not their statistics: give --data a folder or zip")
    critic, channels = run.players["critic"], run.image.channels
    count = min(given.samples, real.count or given.samples)

    def logits(images: Images) -> Iterator[Tensor]:
        done = 0
        for part in images.batches(given.batch):
            with evaluating({"critic": critic}) as dtype:
                shown = as_floats(part[: count - done, :channels].to(run.device))
                yield critic(shown.to(dtype))
            done += len(part)
            if done >= count:
                return

    result = critic_calibration(logits(real), logits(given.fake))
    if given.held_out:
        return result
    seen = "the real images are those that the critic was trained on; give --data others for how it does on new ones"
    return replace(result, warnings=(*result.warnings, seen))


def of_pairs(given: Given, measure: Callable[[Tensor, Tensor], Result]) -> Result:
    """`measure` over files of the same name on both sides."""
    fake, real = given.fake, given.real
    if not isinstance(real, Images) or not fake.names or not real.names:
        raise FastganError("paired measures compare files of the same names: give two folders or zips, without --size")
    first, second = ([name.rpartition(".")[0] for name in side.names] for side in (fake, real))
    for names, others, side in ((first, second, real), (second, first, fake)):
        missing = sorted(set(names) - set(others))
        if missing:
            raise FastganError(
                f"{side.name} has no file named {missing[0]} (and {len(missing) - 1} others of {len(names)} lack a "
                "partner); paired measures compare files of the same names"
            )
    if first != second:  # as where one folder has both a.png and a.jpg
        raise FastganError(f"{fake.name} and {real.name}: several files have the same name but for the ending")
    parts = zip(fake.batches(PAIRED_AT_ONCE), real.batches(PAIRED_AT_ONCE), strict=True)
    return joined([measure(a, b) for a, b in parts])


def joined(results: list[Result]) -> Result:
    """Of results over parts of the pairs, that over all: means by numbers of pairs, `std` by moments, `worst` alone."""
    total = sum(r.n_fake for r in results)

    def mean(of: Callable[[Result], float]) -> float:
        return sum(of(r) * r.n_fake for r in results) / total

    def number(r: Result, key: str) -> float:
        value = r.values[key]
        assert isinstance(value, float)
        return value

    value = mean(lambda r: r.value)
    values: dict[str, float] = {}
    for key in results[0].values:
        if key == "std":
            square = mean(lambda r: number(r, "std") ** 2 + r.value**2) - value**2
            values[key] = max(square, 0.0) ** 0.5
        elif key == "worst":
            values[key] = min(number(r, "worst") for r in results)
        else:
            values[key] = mean(lambda r, key=key: number(r, key))  # type: ignore[misc]
    return replace(results[0], value=value, values=values, n_real=total, n_fake=total)


# By the name in --metrics
OF_IMAGES: dict[str, Callable[[Given], Result]] = {
    "ppl": of_path,
    "critic": of_critic,
    "diversity_lpips": lambda given: of_diversity(given, "lpips"),
    "diversity_ms_ssim": lambda given: of_diversity(given, "ms_ssim"),
}
OF_PAIRS: dict[str, Callable[[Given], Result]] = {
    "psnr": lambda given: of_pairs(given, psnr),
    "ssim": lambda given: of_pairs(given, ssim),
    "ms_ssim": lambda given: of_pairs(given, ms_ssim),
    "pixel_accuracy": lambda given: of_pairs(given, lambda a, b: pixel_accuracy(a, b, tolerance=TOLERANCE)),
}
