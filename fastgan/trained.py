"""What one does with a trained run: draw pictures from it, walk between them, export it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgan.assemble import pick_device
from fastgan.config import Config, from_mapping
from fastgan.contract import Labelled, Samples, Styles
from fastgan.errors import FastganError, suggest
from fastgan.export import export
from fastgan.gans import CycleGAN, StyleBasedGAN, SuperResolution, Translation, UnconditionalGAN
from fastgan.generator import Generator
from fastgan.pictures import columns_of, latent_path, load_players, picture_latents, sample_images, style_path_images
from fastgan.run import folder
from fastgan.run.images import grid, save_animation, save_png, to_uint8
from fastgan.translator import Translator

__all__ = [
    "draw_interpolation",
    "draw_samples",
    "export_run",
    "load_run",
    "parse_labels",
    "parse_seeds",
    "run_folder",
    "writable",
]

Say = Callable[[str], None]


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` as [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        if not match:
            raise FastganError(f"--seeds {text!r} is not a list of numbers and ranges such as 0-63 or 3,7,20-29")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 100_000 or last >= 2**62:
            raise FastganError(f"--seeds {part.strip()!r} must go up, over at most 100,000 numbers below 2^62")
        seeds.extend(range(first, last + 1))
    return seeds


def load_run(
    path: Path, averaged: bool, device_name: str, say: Say
) -> tuple[Config, dict[str, nn.Module], torch.device]:
    """Config and players of a run or checkpoint, on the device."""
    device = pick_device(device_name)
    saved = folder.load(path, say)
    mapping = dict(saved.state["config"])
    config = from_mapping(mapping.pop("preset"), mapping)
    players = load_players(config.system, config.shape, saved.tensors, averaged=averaged, device=device)
    return config, players, device


def _file_name(seeds: str) -> str:
    """Seeds as part of a file's name, a long list by its beginning."""
    name = seeds.replace(" ", "")
    return name if len(name) <= 60 else name[:57] + "..."


def run_folder(path: Path) -> Path:
    """The run that a path names: itself, or the one whose checkpoint it is."""
    return path.parent.parent if (path / "state.json").exists() else path


def parse_labels(text: str, names: Sequence[str], classes: int) -> list[int]:
    """`3,7` or `cat,dog` as numbers of classes: those with such a name, else the number itself."""
    labels = []
    for part in (part.strip() for part in text.split(",")):
        if part in names:
            labels.append(names.index(part))
        elif re.fullmatch(r"\d{1,9}", part) and int(part) < classes:
            labels.append(int(part))
        else:
            hint = suggest(part, names) if names else f"; it has classes 0 to {classes - 1}"
            raise FastganError(f"--labels {text!r}: {part!r} is no class of this run{hint}")
    return labels


def _labels(config: Config, run: Path, text: str | None, seeds: Sequence[int]) -> list[int]:
    """What `--labels` asks of each seed, in turn; [] for a system without classes."""
    if not isinstance(config.system, Labelled):
        if text is not None:
            raise FastganError(f"--labels {text!r}: preset {config.preset} knows no classes; leave it out")
        return []
    if text is None:  # as picture_labels: the same in every command
        return [seed % config.shape.classes for seed in seeds]
    asked = parse_labels(text, folder.class_names(run_folder(run)), config.shape.classes)
    return [asked[i % len(asked)] for i in range(len(seeds))]


def draw_samples(
    run: Path,
    seeds: str,
    labels: str | None,
    out: Path | None,
    singles: Path | None,
    weights: str,
    device_name: str,
    say: Say,
    *,
    truncation: float | None = None,
) -> None:
    """A grid of the pictures of `seeds` as PNG, and with `singles` each of them as a file in that folder.

    labels: classes by name or number, in turn; None: all of them
    truncation: of a system with styles; None: as its options say
    """
    numbers = parse_seeds(seeds)
    config, players, device = load_run(run, weights == "average", device_name, say)
    system = _sampler(config, "sample", truncation)
    asked = _labels(config, run, labels, numbers)
    given = torch.tensor(asked, device=device) if asked else None
    images = to_uint8(sample_images(system, players, picture_latents(system, numbers, device), given))
    name = _file_name(seeds) + (f"-labels-{_file_name(labels)}" if labels else "")
    name += "" if truncation is None else f"-truncation-{truncation:g}"
    out = out or run_folder(run) / f"samples-{name}.png"
    with writable(out):
        save_png(grid(images, columns=columns_of(len(numbers), len(set(asked)))), out)
        if singles:
            singles.mkdir(parents=True, exist_ok=True)
            for seed, image in zip(numbers, images, strict=True):
                save_png(grid(image[None], cell=0), singles / f"seed-{seed:06}.png")
    say(f"{len(numbers)} pictures: {out}" + (f" and {singles}/" if singles else ""))


def draw_interpolation(
    run: Path,
    seeds: str,
    labels: str | None,
    frames: int,
    out: Path | None,
    fps: int,
    weights: str,
    device_name: str,
    say: Say,
    *,
    truncation: float | None = None,
    space: str = "z",
) -> None:
    """An animation from seed to seed as WebP, and its frames as a film strip beside it.

    labels: classes of the seeds, in turn; a frame has that of the seed it comes from. None: all of them
    truncation: of a system with styles; None: as its options say
    space: "z" for ways between latents, "w" for straight ones between styles
    """
    numbers = parse_seeds(seeds)
    if len(numbers) < 2:
        raise FastganError(f"--seeds {seeds!r}: an interpolation needs two or more, such as 0-7")
    for name, value in (("frames", frames), ("fps", fps)):
        if value < 1:
            raise FastganError(f"--{name} must be 1 or more, got {value}")
    config, players, device = load_run(run, weights == "average", device_name, say)
    system = _sampler(config, "interpolate", truncation)
    latents = picture_latents(system, numbers, device)
    asked = _labels(config, run, labels, numbers)
    given = torch.tensor(asked, device=device).repeat_interleave(frames) if asked else None
    if space == "w":
        pictures = style_path_images(_styles(config, system, "--space w"), players, latents, frames)
    else:
        pictures = sample_images(system, players, latent_path(system, latents, frames), given)
    images = to_uint8(pictures)
    name = _file_name(seeds) + (f"-labels-{_file_name(labels)}" if labels else "") + ("-w" if space == "w" else "")
    out = out or run_folder(run) / f"interpolation-{name}.webp"
    strip = out.with_suffix(".png")
    with writable(out):
        save_animation(images, out, fps=fps)
        save_png(grid(images, columns=frames), strip)
    say(f"{len(images)} pictures: {out} (animation) and {strip} (a row per seed)")


def _sampler(config: Config, command: str, truncation: float | None) -> Samples:
    """The system as one that makes images from latents, with such a truncation, or FastganError."""
    if not isinstance(config.system, Samples):
        raise FastganError(f"fastgan {command}: preset {config.preset} makes images from images, not from seeds")
    if truncation is None:
        return config.system
    truncated: Samples = _styles(config, config.system, f"--truncation {truncation:g}").truncated(truncation)
    return truncated


def _styles(config: Config, system: Samples, flag: str) -> Styles:
    """The system as one with styles, or FastganError about the flag that needs them."""
    if not isinstance(system, Styles):
        raise FastganError(f"{flag}: preset {config.preset} has no styles (stylegan2-... have); leave it out")
    return system


def export_run(run: Path, out: Path | None, onnx: bool, weights: str, say: Say) -> None:
    """The run's generator in formats for others (fastgan.export), into RUN/export or `out`."""
    config, players, _ = load_run(run, weights == "average", "cpu", say)
    out = out or run_folder(run) / "export"
    generator: Generator | Translator
    if isinstance(config.system, (Translation, CycleGAN, SuperResolution)):
        generator, engine, use = *_translator(config, players), "fastgan.Translator.from_pretrained({!r})(sources)"
    else:
        generator, engine = _generator(config, players)
        use = "fastgan.Generator.from_pretrained({!r}).sample(range(16))"
    with writable(out / "config.json"):
        export(generator, engine, out, onnx=onnx, say=say)
    say(f"use it: {use.format(str(out))}")


Made = Callable[[torch.Tensor], torch.Tensor]


def _generator(config: Config, players: dict[str, nn.Module]) -> tuple[Generator, Made]:
    """The generator from latents, and what the run itself makes of some."""
    if not isinstance(config.system, (UnconditionalGAN, StyleBasedGAN)):
        raise FastganError(
            f"fastgan export: preset {config.preset} is not one whose generator is a function of z, or of an image, "
            "alone"
        )
    if getattr(config.system, "prior", "none") != "none":
        raise FastganError("fastgan export: a generator with prior='flow' is not one network family; not supported yet")
    s: Any = config.system.truncated(1.0) if isinstance(config.system, StyleBasedGAN) else config.system
    generator = Generator(players["generator"], s.networks, config.shape, s.latent, s.latent_distribution)
    return generator, lambda latents: sample_images(s, players, latents)


def _translator(config: Config, players: dict[str, nn.Module]) -> tuple[Translator, Made]:
    """The network from images to images, and what the run itself makes of some."""
    system: Any = config.system
    if isinstance(system, SuperResolution):
        made = Translator(players["generator"], system.generator, config.shape, config.shape.channels, system.scale)
        return made, lambda sources: _without_grad(system.upscale, players, sources)
    channels = next(p for p in players["generator"].parameters()).shape[1]
    made = Translator(players["generator"], system.generator, config.shape, channels)
    return made, lambda sources: _without_grad(system.translate, players, sources).clamp(-1, 1)


@torch.no_grad()
def _without_grad(make: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
    return make(*given)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """One clear line where `path` cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise FastganError(f"cannot write {path}: {error.strerror}; choose another --out") from None
