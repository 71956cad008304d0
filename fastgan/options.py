"""Everything that decides a training run: Config, and Config as plain values and as TOML."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, replace
from typing import Any

from fastgan.contract import ImageShape, System
from fastgan.data import DataOptions, ImageSet
from fastgan.errors import FastganError, suggest
from fastgan.evaluation import Evaluation
from fastgan.optim import Averaging, Optimizer
from fastgan.schedule import Schedule
from fastgan.step import PRECISIONS


@dataclass(frozen=True)
class Output:
    """When a run writes what.

    tick_seconds:     a line in the log, in stats.jsonl and on the terminal at least this many seconds apart
    grid_kimg:        a grid of samples every so many thousand images (0: at start and end only)
    checkpoint_kimg:  a checkpoint every so many thousand images (0: at the end only)
    keep:             checkpoints that stay on the disk
    grid_images:      pictures in a grid
    copy_to:          a second place for checkpoints, such as s3://bucket/run: anything that fsspec knows
    """

    tick_seconds: float = 10.0
    grid_kimg: float = 50.0
    checkpoint_kimg: float = 50.0
    keep: int = 3
    grid_images: int = 64
    copy_to: str = ""

    def __post_init__(self) -> None:
        for name in ("tick_seconds", "grid_kimg", "checkpoint_kimg"):
            if not getattr(self, name) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("grid_kimg", "checkpoint_kimg"):
            if 0 < getattr(self, name) < 1e-3:
                raise FastganError(f"{name} must be 0 or at least 0.001 (one image), got {getattr(self, name)}")
        for name in ("keep", "grid_images"):
            if getattr(self, name) < 1:
                raise FastganError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run.

    preset:        name of the preset that the rest started from
    system:        adversarial system with its networks, losses and penalties
    optim:         optimiser of each player, by name
    kimg:          length of the run, in thousands of real images
    batch:         images per turn, of all ranks together
    seed:          of initial weights, order of the data, and all noise
    out:           run folder
    device:        "auto", "cpu", "cuda", "cuda:1", ...
    threads:       CPU threads of PyTorch (0: as many as it chooses); small networks are faster with one
    channels_last: memory format of the networks
    precision:     "auto" (bfloat16 on GPUs that have it), "bfloat16" (mixed, weights in float32), "float32"
    capture:       on a GPU, whole steps are replayed as CUDA graphs
    init:          run folder, checkpoint or .safetensors file to take first weights from ("": none)
    resume:        "auto" (go on with what is in `out`), "never", or a run folder or checkpoint to go on from
    max_skipped:   training stops after so many turns in a row that were not finite
    """

    preset: str
    system: System
    optim: dict[str, Optimizer]
    data: DataOptions = field(default_factory=DataOptions)
    averaging: Averaging = field(default_factory=Averaging)
    output: Output = field(default_factory=Output)
    evaluation: Evaluation = field(default_factory=Evaluation)
    kimg: float = 1000.0
    batch: int = 64
    seed: int = 0
    out: str = ""
    device: str = "auto"
    threads: int = 0
    channels_last: bool = True
    precision: str = "auto"
    capture: bool = True
    init: str = ""
    resume: str = "auto"
    max_skipped: int = 100

    def __post_init__(self) -> None:
        for name in ("kimg", "batch", "max_skipped"):
            if not getattr(self, name) > 0 or math.isinf(getattr(self, name)):
                raise FastganError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.kimg > 1e9:
            raise FastganError(f"kimg must be at most 1e9 (a trillion images), got {self.kimg}")
        if not 0 <= self.threads <= 1024:
            raise FastganError(f"threads must be from 0 to 1024, got {self.threads}")
        if self.precision not in PRECISIONS:
            raise FastganError(f"precision {self.precision!r} is unknown{suggest(self.precision, PRECISIONS)}")
        if not 0 <= self.seed < 2**63:
            raise FastganError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.data.channels, self.data.size, self.data.classes, self.data.source_channels)

    @property
    def images(self) -> int:
        """Length of the run in images."""
        return max(1, round(self.kimg * 1000))


def with_data(config: Config, images: ImageSet) -> Config:
    """The config with what only the images tell: classes, and channels of a second set. FastganError where it differs
    from what the config says."""
    classes, source_channels = len(images.classes), images.source.channels if images.source else 0
    for name, found in (("classes", classes), ("source_channels", source_channels)):
        wanted = getattr(config.data, name)
        if wanted not in (0, found):
            raise FastganError(f"data.{name} is {wanted}, but {images.name} has {found}; leave it out")
    return replace(config, data=replace(config.data, classes=classes, source_channels=source_channels))


def to_mapping(config: Any) -> dict[str, Any]:
    """A Config as nested plain values (str, int, float, bool, list, dict), in the order of its fields."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return list(value) if isinstance(value, tuple) else value

    mapping: dict[str, Any] = plain(config)
    return mapping


def defaults(config: Any, where: str = "") -> dict[str, Any]:
    """{"a.b": plain value} of every option that has a default, at the default of its class."""
    found: dict[str, Any] = {}
    if isinstance(config, dict):
        return {k: v for key, value in config.items() for k, v in defaults(value, f"{where}{key}.").items()}
    if not dataclasses.is_dataclass(config) or isinstance(config, Schedule):
        return found
    for f in dataclasses.fields(config):
        name, made = f"{where}{f.name}", f.default
        if f.default_factory is not dataclasses.MISSING:
            made = f.default_factory()
        if made is not dataclasses.MISSING and not dataclasses.is_dataclass(made):
            found[name] = to_mapping(made)
        found |= defaults(getattr(config, f.name), f"{name}.")
    return found


def to_toml(config: Config) -> str:
    """A Config as TOML that `--config` takes."""
    lines: list[str] = []

    def scalar(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
            return f'"{escaped}"'
        if isinstance(value, list):
            return "[" + ", ".join(scalar(v) for v in value) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {scalar(v)}" for k, v in value.items()) + "}"
        return repr(value)

    def table(mapping: dict[str, Any], base: Any, name: str) -> None:
        groups = []
        for key, value in mapping.items():
            own = base[key] if isinstance(base, dict) else getattr(base, key)
            if isinstance(value, dict) and not isinstance(own, Schedule):
                groups.append((key, value, own))
            else:
                lines.append(f"{key} = {scalar(value)}")
        for key, value, own in groups:
            lines.extend(["", f"[{name}{key}]"])
            table(value, own, f"{name}{key}.")

    table(to_mapping(config), config, "")
    return "\n".join(lines) + "\n"
