"""A trained network from images to images by itself, without the trainer, and without pickle.

    translator = fastgan.Translator.from_pretrained("runs/edges/export")
    images = translator(sources)         # sources [N, C', S, S] in [-1, 1] -> [N, C, S, S], float32 in [-1, 1]

`fastgan export` writes the folder for a run of paired or unpaired translation or of super-resolution; the last takes
sources of any size and returns `scale` times as large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastgan import exported
from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.exported import WEIGHTS
from fastgan.models import NETWORKS, TRANSLATORS


@dataclass(eq=False)
class Translator:
    """A network in evaluation mode, and what it is given.

    network:  x [N, channels, H, W] -> [N, C, scale H, scale W]
    networks: options of the network family that it was made from
    image:    of the results in training
    channels: of the sources;  scale: 1, or by how much super-resolution enlarges
    """

    network: nn.Module
    networks: Any
    image: ImageShape
    channels: int
    scale: int = 1

    given: ClassVar[str] = "source"

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @staticmethod
    def from_pretrained(path: str | Path, device: torch.device | str = "cpu") -> Translator:
        """The network in a folder that `fastgan export` wrote. Raises FastganError for any other folder."""
        folder = Path(path).expanduser()
        options = exported.read_config(folder, TRANSLATORS, dict.fromkeys(NETWORKS, "fastgan.Generator"))
        with exported.describing(folder, "a network"):
            networks: Any = TRANSLATORS[options["family"]](**exported.tuples(options["networks"]))
            image = ImageShape(int(options["channels"]), int(options["size"]))
            channels, scale = int(options["source_channels"]), int(options["scale"])
            enlarges = hasattr(networks, "upscaler")
            network = networks.upscaler(channels, scale) if enlarges else networks.translator(image, channels)
        exported.load(network, folder / WEIGHTS)
        network.to(device)
        return Translator(network, networks, image, channels, scale)

    def save(self, path: str | Path) -> None:
        """Write the folder that `from_pretrained` reads."""
        exported.write(
            Path(path),
            self.network,
            self.networks,
            TRANSLATORS,
            channels=self.image.channels,
            size=self.image.size,
            source_channels=self.channels,
            scale=self.scale,
        )

    def example(self) -> Tensor:
        """What the network is compared on: five sources of noise."""
        size = self.image.size // self.scale
        noise = torch.randn(5, self.channels, size, size, generator=torch.Generator().manual_seed(0))
        return (noise / 2).clamp(-1, 1)

    @torch.no_grad()
    def __call__(self, sources: Tensor, *, batch: int = 16) -> Tensor:
        """Images [N, C, H', W'] in [-1, 1] of sources [N, channels, H, W] in [-1, 1]. FastganError for other shapes."""
        size = self.image.size
        fits = sources.dim() == 4 and sources.shape[1] == self.channels and len(sources) > 0
        if not fits or (self.scale == 1 and tuple(sources.shape[2:]) != (size, size)):
            wanted = f"[N, {self.channels}, " + ("H, W]" if self.scale > 1 else f"{size}, {size}]")
            raise FastganError(f"expected sources {wanted} with N of 1 or more, got {list(sources.shape)}")
        return torch.cat([self.network(part) for part in sources.split(batch)]).clamp(-1, 1)  # type: ignore[no-untyped-call]
