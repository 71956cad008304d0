"""A trained generator by itself: pictures from seeds, without the trainer, and without pickle.

    generator = fastgan.Generator.from_pretrained("runs/digits/export")
    images = generator.sample(range(16))         # [16, C, S, S], float32 in [-1, 1]

`fastgan export` writes the folder: `config.json` says which networks with which options, `generator.safetensors` has
their weights. The same seeds give the same latents as in `fastgan sample`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastgan._version import __version__
from fastgan.contract import PICTURE_STREAM, Draw, ImageShape
from fastgan.errors import FastganError, suggest
from fastgan.gans.latents import check_distribution, draw_latents
from fastgan.models import NETWORKS

FORMAT = 1  # of config.json
CONFIG, WEIGHTS = "config.json", "generator.safetensors"


@dataclass(eq=False)
class Generator:
    """A generator in evaluation mode, and how its latents are drawn.

    network:  z [N, latent] -> [N, C, S, S]
    networks: options of the network family that it was made from
    """

    network: nn.Module
    networks: Any
    image: ImageShape
    latent: int
    distribution: str

    def __post_init__(self) -> None:
        check_distribution(self.distribution)
        self.network.eval().requires_grad_(False)

    @staticmethod
    def from_pretrained(path: str | Path, device: torch.device | str = "cpu") -> Generator:
        """The generator in a folder that `fastgan export` wrote. Raises FastganError for any other folder."""
        folder = Path(path).expanduser()
        options = _read_config(folder)
        try:
            networks = NETWORKS[options["family"]](**_tuples(options["networks"]))
            image = ImageShape(int(options["channels"]), int(options["size"]))
            network = networks.generator(image, int(options["latent"]))
            generator = Generator(network, networks, image, int(options["latent"]), options["distribution"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FastganError):
                raise FastganError(f"{folder / CONFIG}: {error}") from None
            raise FastganError(f"{folder / CONFIG} does not describe a generator ({error}); export it again") from None
        _load(network, folder / WEIGHTS)
        network.to(device)
        return generator

    def save(self, path: str | Path) -> None:
        """Write the folder that `from_pretrained` reads."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        family = next(name for name, kind in NETWORKS.items() if type(self.networks) is kind)
        options = {
            "format": FORMAT,
            "fastgan": __version__,
            "family": family,
            "networks": dataclasses.asdict(self.networks),
            "channels": self.image.channels,
            "size": self.image.size,
            "latent": self.latent,
            "distribution": self.distribution,
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(options, indent=1) + "\n")

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def latents(self, seeds: Iterable[int]) -> Tensor:
        """Latents [N, latent] of `seeds`: those of `fastgan sample`."""
        index = torch.tensor(list(seeds), dtype=torch.int64, device=self.device)
        return draw_latents(self.distribution, self.latent, Draw(0, index, PICTURE_STREAM))

    @torch.no_grad()
    def sample(self, seeds: Iterable[int], *, batch: int = 64) -> Tensor:
        """Images [N, C, S, S] in [-1, 1] for `seeds`, computed `batch` at a time."""
        latents = self.latents(seeds).to(next(self.network.parameters()).dtype)
        if not len(latents):
            return latents.new_zeros(0, self.image.channels, self.image.size, self.image.size)
        return torch.cat([self.network(part) for part in latents.split(batch)]).clamp(-1, 1)  # type: ignore[no-untyped-call]


def _read_config(folder: Path) -> dict[str, Any]:
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
    if options.get("family") not in NETWORKS:
        family = str(options.get("family"))
        raise FastganError(f"{path}: network family {family!r} is unknown{suggest(family, NETWORKS)}")
    return options


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that options have."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _load(network: nn.Module, path: Path) -> None:
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
