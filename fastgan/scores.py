"""What `fastgan eval` does: finds both sides, opens the feature network, scores, and says it as text or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastgan.assemble import pick_device
from fastgan.data import DataOptions, open_images
from fastgan.data.pack_format import is_pack
from fastgan.dist import ALONE, Ranks
from fastgan.errors import FastganError
from fastgan.evaluation import METRICS, Progress, evaluate, generated_images, numbers_of, parse_metrics
from fastgan.features import open_extractor
from fastgan.image_scores import OF_IMAGES, OF_PAIRS, Distance, Given, Run, perceptual
from fastgan.metrics import FeatureStatistics, prd_svg
from fastgan.metrics.result import Result
from fastgan.metrics.sources import Images, images_of
from fastgan.trained import load_run

Say = Callable[[str], None]


@dataclass(frozen=True)
class SourceOptions:
    """The options of `fastgan eval`, under the names that its help explains."""

    source: Path
    data: str | None
    samples: int
    size: int | None
    live: bool
    device: str
    features: str | None
    weights: Path | None
    download: bool
    resize: str
    batch: int
    bf16: bool = False
    plot: Path | None = None


@dataclass(frozen=True)
class Scores:
    """Results of the metrics; what was compared, in words; what the features are; their record."""

    fake: str
    real: str
    features: str
    record: Mapping[str, object]
    results: tuple[Result, ...]


def score(options: SourceOptions, metrics: str, progress: Progress, say: Say, ranks: Ranks = ALONE) -> Scores:
    """Scores of a run, or of a folder, zip or pack of images, against real images.

    ranks: they share the work of the feature network, and each has to call this; what rank 0 returns counts
    Raises FastganError for what the user can mend.
    """
    names = parse_metrics(metrics, (*METRICS, *OF_IMAGES, *OF_PAIRS))
    if options.plot is not None and "prd" not in names:
        raise FastganError(f"--plot {options.plot}: shows the curve of the metric prd; add it to --metrics")
    for name in ("samples", "batch"):
        if getattr(options, name) < (2 if name == "samples" else 1):
            raise FastganError(
                f"--{name} must be {2 if name == 'samples' else 1} or more, got {getattr(options, name)}"
            )
    with ranks.together():
        device = pick_device(ranks.device_name(options.device))
        sides = _sides(options, names, device, say if ranks.first else lambda line: None)
    fake, real = sides.fake, sides.real
    network = options.features or ("digits" if isinstance(real, Images) and real.name == "digits" else "inception")
    weights: Callable[[int, int], None] = lambda done, total: progress("weights", done, total)  # noqa: E731
    found: dict[str, list[Result]] = {}
    record: Mapping[str, object] = {}
    words = ""
    if of_features := [name for name in names if name in METRICS]:
        assert real is not None
        with ranks.together():
            extract = open_extractor(
                network,
                weights=options.weights,
                download=options.download,
                resize=options.resize,
                bf16=options.bf16,
                device=device,
                progress=weights,
            )
        results = evaluate(real, fake, extract, of_features, batch_size=options.batch, progress=progress, ranks=ranks)
        found = by_name(of_features, results)
        p = extract.protocol
        words = f"features: {extract.name}; resize: {p.resize}; weights: {p.verified}; {p.arithmetic}"
        record = asdict(p)
    given = replace(sides, distance=lambda: perceptual(network, device, options.download, weights))
    with ranks.together():
        for name in names:
            if name not in METRICS and ranks.first:
                found[name] = [(OF_IMAGES | OF_PAIRS)[name](given)]
    ordered = tuple(result for name in names for result in found.get(name, []))
    return Scores(_words(fake), "" if real is None else _words(real), words, record, ordered)


def by_name(names: Sequence[str], results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each metric: in order, one each, but for the two of "prdc"."""
    rest = iter(results)
    return {name: [next(rest) for _ in range(2 if name == "prdc" else 1)] for name in names}


def _words(images: Images | FeatureStatistics) -> str:
    if isinstance(images, FeatureStatistics):
        return f"statistics of {images.count or 'an unknown number of'} images"
    return images.name if images.count is None else f"{images.name} ({images.count:,} images)"


def scores_as_text(scores: Scores) -> str:
    """What was compared, a line per number, and the warnings."""
    numbers = numbers_of(scores.results)
    width = max(map(len, numbers))
    warnings = dict.fromkeys(warning for result in scores.results for warning in result.warnings)
    return "\n".join(
        (
            *(line for line in (scores.fake, scores.real and f"against {scores.real}", scores.features) if line),
            "",
            *(f"{name:{width}}  {value:.5g}" for name, value in numbers.items()),
            *(f"warning: {warning}" for warning in warnings),
        )
    )


def plot_scores(scores: Scores, path: Path) -> None:
    """The curve of the metric prd as an SVG file."""
    found = next(result for result in scores.results if result.name == "prd")
    try:
        path.write_text(prd_svg({scores.fake: found}))
    except OSError as error:
        raise FastganError(f"cannot write {path}: {error.strerror}; choose another path") from None


def scores_as_json(scores: Scores) -> str:
    """One JSON object. A number that is not finite is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    content = {
        "generated": scores.fake,
        "real": scores.real,
        "features": scores.record,
        "results": [result.as_dict() for result in scores.results],
    }
    return json.dumps(plain(content), indent=1, allow_nan=False)


def _sides(options: SourceOptions, names: Sequence[str], device: torch.device, say: Say) -> Given:
    """What is to be scored, and the real images, where one of the metrics needs them."""
    source, size = options.source.expanduser(), options.size
    if (source / "checkpoints").is_dir() or (source / "state.json").exists():
        return _of_run(options, source, device, say)
    if wrong := [name for name in names if name in ("ppl", "critic")]:
        raise FastganError(f"metric {wrong[0]!r} is of a run, and {source} is none (it has no checkpoints)")
    if options.data is None and any(not name.startswith("diversity") for name in names):
        raise FastganError(
            f"{source} is no run, so --data has to name the real images: a folder, a zip, a pack, or digits"
        )
    fake, real = _given(str(source), size), None
    if options.data is not None:
        if options.data == "digits" and size is None:
            size = next(fake.batches(1)).shape[2]
        real = FeatureStatistics.load(options.data) if options.data.endswith(".npz") else _given(options.data, size)
    return Given(fake, real, None, nothing, options.samples, options.batch)


def _of_run(options: SourceOptions, source: Path, device: torch.device, say: Say) -> Given:
    """The pictures of a run, and the reals as it saw them: cropped and resized alike."""
    config, players, _ = load_run(source, not options.live, str(device), say)
    if options.size and options.size != config.data.size:
        raise FastganError(f"--size {options.size}: the pictures of {source} have {config.data.size}; leave it out")
    statistics = bool(options.data and options.data.endswith(".npz"))
    images = None if statistics else open_images(replace(config.data, path=options.data or config.data.path))
    name = str(options.source)
    fake = generated_images(config.system, players, config.shape, options.samples, device, images, name)
    real = images_of(images) if images else FeatureStatistics.load(str(options.data))
    run = Run(config.system, players, config.shape, device)
    held_out = options.data not in (None, config.data.path)
    return Given(fake, real, run, nothing, options.samples, options.batch, held_out)


def nothing() -> Distance:
    raise AssertionError("the perceptual distance is opened where a metric asks for it")


def _given(path: str, size: int | None) -> Images:
    if size is None:
        return images_of(path)
    if path != "digits" and is_pack(Path(path).expanduser()):
        found = images_of(path)
        if (had := next(found.batches(1)).shape[2]) != size:
            raise FastganError(f"--size {size}: the images of the pack {path} have {had}; leave it out")
        return found
    return images_of(open_images(DataOptions(path=path, size=size)))
