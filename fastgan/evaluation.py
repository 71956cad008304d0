"""Scores of a set of images, or of a generator, against real ones: what `fastgan eval` and a training run share.

Features of the real set are kept in the cache folder, under a name that is a hash of its images, of the network's
weights and of how they were prepared: they are computed once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.contract import ImageShape, Samples, System
from fastgan.data import ImageSet
from fastgan.dist import ALONE, Ranks
from fastgan.errors import FastganError, suggest
from fastgan.features import Extractor, open_extractor
from fastgan.features.weights import cache_folder
from fastgan.metrics import (
    FeatureStatistics,
    Result,
    density_coverage,
    fid,
    fid_infinity,
    inception_score,
    kid,
    prd,
    prdc,
    precision_recall,
)
from fastgan.metrics.checks import network_of
from fastgan.metrics.sources import Images, eight_bits, features_of
from fastgan.pictures import (
    evaluating,
    picture_batch,
    picture_draw,
    picture_labels,
    picture_latents,
    sample_images,
)

# (which side: "real" or "generated", images done, of how many; 0 where that is not known)
Progress = Callable[[str, int, int], None]
BATCH = 64
COMPARED = 1000  # images of each side that go through a network in bf16 and through the same in fp32


@dataclass(frozen=True)
class Evaluation:
    """Scores during training.

    every_kimg: every so many thousand images, and at the end (0: never)
    metrics:    names of METRICS with commas between them
    samples:    generated pictures, of seeds 0 to samples - 1
    features, weights, resize: the network, the file of its weights ("": the cache folder's), and how it sees images
    """

    every_kimg: float = 0.0
    metrics: str = "fid"
    samples: int = 10_000
    features: str = "inception"
    weights: str = ""
    resize: str = "tensorflow"

    def __post_init__(self) -> None:
        parse_metrics(self.metrics)
        if not (self.every_kimg == 0 or self.every_kimg >= 1e-3):
            raise FastganError(f"every_kimg must be 0 or at least 0.001 (one image), got {self.every_kimg}")
        if self.samples < 2:
            raise FastganError(f"samples must be 2 or more, got {self.samples}")

    def extractor(self, device: torch.device) -> Extractor | None:
        """The network; None where nothing is to be scored. FastganError where its weights are not there."""
        if not self.every_kimg:
            return None
        return open_extractor(self.features, weights=self.weights or None, resize=self.resize, device=device)


@dataclass(frozen=True)
class Sides:
    """What a metric gets. real: [n, d] (a metric that needs no more than statistics gets those, where nothing else was
    asked for); fake: [m, d]; logits: of the fake, [m, classes]; features: the network, for the record."""

    real: Tensor | FeatureStatistics
    fake: Tensor
    logits: Tensor
    features: Extractor


@dataclass(frozen=True)
class Metric:
    """run: what computes it;  needs: "samples" or "statistics" of the real side, or "logits" of the fake one"""

    run: Callable[[Sides], Sequence[Result]]
    needs: str


METRICS = {
    "fid": Metric(lambda s: [fid(s.real, s.fake, s.features)], "statistics"),
    "fid_infinity": Metric(lambda s: [fid_infinity(s.real, s.fake, s.features)], "statistics"),
    "kid": Metric(lambda s: [kid(s.real, s.fake, s.features)], "samples"),
    "is": Metric(lambda s: [inception_score(s.logits, s.features)], "logits"),
    "prdc": Metric(lambda s: prdc(s.real, s.fake, s.features), "samples"),
    "precision_recall": Metric(lambda s: [precision_recall(s.real, s.fake, s.features)], "samples"),
    "density_coverage": Metric(lambda s: [density_coverage(s.real, s.fake, s.features)], "samples"),
    "prd": Metric(lambda s: [prd(s.real, s.fake, s.features)], "samples"),
}


def parse_metrics(text: str, known: Collection[str] = METRICS) -> tuple[str, ...]:
    """`fid,prdc` as names, each of `known`. FastganError for an unknown one."""
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in known:
            raise FastganError(f"metric {name!r} is unknown{suggest(name, known)}")
        if name not in names:
            names.append(name)
    if not names:
        raise FastganError(f"no metric was named; expected some of {', '.join(known)}")
    return tuple(names)


def evaluate(
    real: Images | FeatureStatistics,
    fake: Images,
    extract: Extractor,
    names: Sequence[str],
    *,
    batch_size: int = BATCH,
    progress: Progress = lambda side, done, count: None,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """The metrics called `names` (of METRICS) of `fake` against `real`; each side goes through the network once.

    ranks: they share the images out, batch by batch, and all return the same results. Every rank has to call it, with
    the same arguments and a network on its own device.
    Raises FastganError, also for a network without logits where the Inception score is asked for.
    """
    needs = {METRICS[name].needs for name in names}
    if "logits" in needs and extract.logits is None:
        raise FastganError(
            f"metric 'is' needs class logits, which {extract.name} does not have; use --features inception, or leave "
            "it out"
        )
    known: Tensor | FeatureStatistics = torch.empty(0, 0)
    if isinstance(real, FeatureStatistics):
        if "samples" in needs:
            wants = ", ".join(name for name in names if METRICS[name].needs == "samples")
            raise FastganError(
                f"{wants}: need the real images, not their statistics alone; give --data a folder, zip or pack"
            )
        known = real
    elif needs & {"samples", "statistics"}:
        known = real_features(real, extract, "samples" in needs, batch_size, progress, ranks)
    generated = _gathered(_counted(fake, extract, batch_size, "generated", progress, ranks), ranks, extract.device)
    logits = extract.logits(generated) if "logits" in needs and extract.logits is not None else generated
    sides = Sides(known, generated, logits, extract)
    with ranks.together():
        results = [result for name in names for result in METRICS[name].run(sides)]
        if extract.exact is not None:
            said = _effect_of_bf16(real, fake, sides, names, batch_size)
            results = [replace(r, warnings=(*r.warnings, words)) for r, words in zip(results, said, strict=True)]
    return _as_first(results, ranks)


def _effect_of_bf16(
    real: Images | FeatureStatistics, fake: Images, sides: Sides, names: Sequence[str], batch_size: int
) -> list[str]:
    """For each result in words: its numbers over the first images of both sides, in bf16 and in fp32."""
    extract, exact = sides.features, sides.features.exact
    assert exact is not None
    if fake.every is None or (isinstance(real, Images) and real.every is None):
        raise FastganError(
            "bf16: its effect is measured on some images once more, which these cannot give; leave it out"
        )
    numbers: list[list[dict[str, float]]] = []
    count = 0
    for network in (extract, exact):
        of_fake, count = _first(fake, network, batch_size)
        of_real: Tensor | FeatureStatistics = real if isinstance(real, FeatureStatistics) else sides.real
        if isinstance(real, Images) and any(METRICS[name].needs != "logits" for name in names):
            of_real, _ = _first(real, network, batch_size)
        logits = network.logits(of_fake) if network.logits is not None else of_fake
        some = Sides(of_real, of_fake, logits, network)
        numbers.append([numbers_of([result]) for name in names for result in METRICS[name].run(some)])
    return [
        f"features in bf16: over the first {count:,} images "
        + ", ".join(f"{key} is {half[key]:.5g}, in fp32 {full[key]:.5g}" for key in half)
        for half, full in zip(*numbers, strict=True)
    ]


def _first(images: Images, network: Extractor, batch_size: int) -> tuple[Tensor, int]:
    """Features of the first COMPARED images, and how many these are."""
    batches = islice(images.batches(batch_size), -(-COMPARED // batch_size))
    found = torch.cat(list(features_of(batches, network, batch_size=batch_size)))[:COMPARED]
    return found, len(found)


def numbers_of(results: Sequence[Result]) -> dict[str, float]:
    """All single numbers by name: `fid`, `kid`, `kid.std`, `precision`, `recall`, ..."""
    numbers: dict[str, float] = {}
    for result in results:
        single = {key: float(v) for key, v in result.values.items() if isinstance(v, (int, float))}
        if result.value in single.values():  # the value has a name of its own: precision, density, f8
            numbers |= single
        else:
            numbers |= {result.name: result.value} | {f"{result.name}.{key}": v for key, v in single.items()}
    return numbers


def real_features(
    images: Images, extract: Extractor, samples: bool, batch_size: int, progress: Progress, ranks: Ranks = ALONE
) -> Tensor | FeatureStatistics:
    """Features [n, d] of a real set, or with samples=False their statistics; from the cache where all ranks have it."""
    path, digest = None, ""
    if images.digest is not None:
        with ranks.together():
            digest = images.digest() if ranks.first else ""
        path = cache_folder() / "features" / _key(ranks.from_first(digest), extract)
    cached = _cached(path, samples, extract.device)
    if not ranks.highest(int(cached is None)):
        assert cached is not None
        return cached
    path = path if ranks.local_rank == 0 else None
    batches = _counted(images, extract, batch_size, "real", progress, ranks)
    if samples:
        found = _gathered(batches, ranks, extract.device)
        _keep(path, ".npy", lambda target: np.save(target, found.numpy(force=True), allow_pickle=False))
        return found
    statistics = FeatureStatistics(network_of(extract))
    with ranks.together():
        for batch in batches:
            statistics.update(batch)
    _keep(path, ".npz", statistics.all_reduce(ranks).save)
    return statistics


def _cached(path: Path | None, samples: bool, device: torch.device) -> Tensor | FeatureStatistics | None:
    if path is None:
        return None
    with contextlib.suppress(Exception):  # not there, or damaged: it is only a cache
        return torch.from_numpy(np.load(path.with_suffix(".npy"), allow_pickle=False)).to(device)
    if not samples:
        with contextlib.suppress(FastganError):
            return FeatureStatistics.load(path.with_suffix(".npz"))
    return None


def _gathered(batches: Iterator[Tensor], ranks: Ranks, device: torch.device) -> Tensor:
    """[n, d] of the batches of all ranks, number b of which is one of rank b % world, in order, on every rank."""
    with ranks.together():
        found = list(batches)
    size = ranks.highest(found[0].shape[1] if found else 0)
    if not size:
        raise FastganError("expected images, got none; check where they come from")
    counts = [list(c) for c in ranks.gather_json([len(batch) for batch in found])]
    mine = torch.cat(found) if found else torch.zeros(0, size, device=device)
    parts = [torch.split(rows, c) for rows, c in zip(ranks.gather(mine), counts, strict=True)]
    return torch.cat([parts[b % ranks.world][b // ranks.world] for b in range(sum(map(len, counts)))])


def _as_first(results: list[Result], ranks: Ranks) -> list[Result]:
    """With the numbers that rank 0 has: other processors may round otherwise."""
    said = ranks.from_first([[result.value, dict(result.values)] for result in results])
    if ranks.world == 1:
        return results
    of_first = [
        (value, {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}) for value, values in said
    ]
    return [replace(r, value=value, values=values) for r, (value, values) in zip(results, of_first, strict=True)]


def _key(digest: str, extract: Extractor) -> str:
    """Of the images (by their digest), the weights and the preparation: the name of a file."""
    record = asdict(extract.protocol)
    del record["verified"]  # says how far the same file was checked, and changes nothing
    text = json.dumps({"format": 1, "images": digest, **record}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _keep(path: Path | None, suffix: str, save: Callable[[Path], None]) -> None:
    """Saves as a whole or not at all; a cache that cannot be written is left alone."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    with contextlib.suppress(OSError, FastganError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(temporary)
            temporary.replace(path.with_suffix(suffix))
        finally:
            temporary.unlink(missing_ok=True)


def _counted(
    images: Images, extract: Extractor, batch_size: int, side: str, progress: Progress, ranks: Ranks
) -> Iterator[Tensor]:
    """Features of this rank's batches; progress is reported as if the others were as far."""
    done, count = 0, images.count or 0
    progress(side, done, count)
    for batch in features_of(images.share(ranks.rank, ranks.world), extract, batch_size=batch_size):
        done += len(batch) * ranks.world
        progress(side, min(done, count) if count else done, count)
        yield batch


def generated_images(
    system: System,
    players: Mapping[str, nn.Module],
    image: ImageShape,
    count: int,
    device: torch.device,
    reals: ImageSet | None = None,
    name: str = "generated",
) -> Images:
    """Pictures number 0 to count - 1 in 8 bits: those of seeds, as `fastgan sample` draws them, each class in turn; or,
    of a system that starts from images, what it makes of `reals`, each in turn."""
    if not isinstance(system, Samples) and reals is None:
        raise FastganError(f"{name} makes images from images: give --data a folder, zip or pack, not statistics")

    def batches(size: int, first: int = 0, step: int = 1) -> Iterator[Tensor]:
        for start in range(first * size, count, step * size):
            numbers = range(start, min(start + size, count))
            if isinstance(system, Samples):
                latents, labels = picture_latents(system, numbers, device), picture_labels(image, numbers, device)
                yield eight_bits(sample_images(system, players, latents, labels, batch=size))
            else:
                assert reals is not None
                with evaluating(players):
                    batch = picture_batch(reals, numbers, device)
                    yield eight_bits(system.generate(players, batch, picture_draw(numbers, device)).clamp(-1, 1))

    return Images(name, batches, count, every=batches)
