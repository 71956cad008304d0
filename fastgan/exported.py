"""The folder that `fastgan export` writes: options as JSON, weights as safetensors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from fastgan._version import __version__
from fastgan.errors import FastganError, suggest

FORMAT = 1  # of config.json
CONFIG, WEIGHTS = "config.json", "generator.safetensors"


def write(folder: Path, network: nn.Module, networks: Any, families: Mapping[str, type], **options: Any) -> None:
    """networks: options of the network, of one of `families`;  options: what else config.json says"""
    folder.mkdir(parents=True, exist_ok=True)
    family = next(name for name, kind in families.items() if type(networks) is kind)
    about = {"format": FORMAT, "fastgan": __version__, "family": family, "networks": dataclasses.asdict(networks)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(about | options, indent=1) + "\n")


def read_config(folder: Path, families: Mapping[str, type], others: Mapping[str, str]) -> dict[str, Any]:
    """What config.json says, of one of `families`. others: family -> what reads it instead. Raises FastganError."""
    path = folder / CONFIG
    advice = "give a folder that `fastgan export RUN` wrote"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FastganError(f"{path} cannot be read: {error.strerror}; {advice}") from None
    except ValueError as error:
        raise FastganError(f"{path} is not JSON ({error}); {advice}") from None
    if not isinstance(options, dict) or options.get("format") != FORMAT:
        raise FastganError(f"{path}: expected an exported generator of format {FORMAT}; export it again")
    family = str(options.get("family"))
    if family in others:
        raise FastganError(f"{path} is of another kind of network, {family!r}; open it with {others[family]}")
    if family not in families:
        raise FastganError(f"{path}: network family {family!r} is unknown{suggest(family, families)}")
    return options


@contextlib.contextmanager
def describing(folder: Path, what: str) -> Iterator[None]:
    """Options in config.json from which no `what` can be made, within, are FastganErrors that name the file."""
    try:
        yield
    except FastganError as error:
        raise FastganError(f"{folder / CONFIG}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise FastganError(f"{folder / CONFIG} does not describe {what} ({error}); export it again") from None


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that options have."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def load(network: nn.Module, path: Path) -> None:
    """Weights from a safetensors file, of exactly this network."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise FastganError(f"{path} cannot be read as safetensors ({error}); export the generator again") from None
    mine = network.state_dict()
    wrong = [
        n for n in sorted({*mine, *tensors}) if getattr(mine.get(n), "shape", 0) != getattr(tensors.get(n), "shape", 1)
    ]
    if wrong:
        raise FastganError(f"{path} has the weights of another network: see {wrong[0]!r}; export the generator again")
    network.load_state_dict(tensors)
