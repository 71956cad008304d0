"""A trained generator by itself: pictures from seeds, without the trainer, and without pickle.

    generator = fastgan.Generator.from_pretrained("runs/digits/export")
    images = generator.sample(range(16))         # [16, C, S, S], float32 in [-1, 1]

`fastgan export` writes the folder: `config.json` says which networks with which options, `generator.safetensors` has
their weights. The same seeds give the same latents as in `fastgan sample`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastgan import exported
from fastgan.contract import PICTURE_STREAM, Draw, ImageShape
from fastgan.exported import WEIGHTS
from fastgan.gans.latents import check_distribution, draw_latents
from fastgan.models import NETWORKS, TRANSLATORS


@dataclass(eq=False)
class Generator:
    """A generator in evaluation mode, and how its latents are drawn.

    network:  z [N, latent] -> [N, C, S, S]
    networks: options of the network family that it was made from
    """

    given: ClassVar[str] = "z"  # what an exported program calls the network's input

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
        options = exported.read_config(folder, NETWORKS, dict.fromkeys(TRANSLATORS, "fastgan.Translator"))
        with exported.describing(folder, "a generator"):
            networks = NETWORKS[options["family"]](**exported.tuples(options["networks"]))
            image = ImageShape(int(options["channels"]), int(options["size"]))
            network = networks.generator(image, int(options["latent"]))
            generator = Generator(network, networks, image, int(options["latent"]), options["distribution"])
        exported.load(network, folder / WEIGHTS)
        network.to(device)
        return generator

    def save(self, path: str | Path) -> None:
        """Write the folder that `from_pretrained` reads."""
        exported.write(
            Path(path),
            self.network,
            self.networks,
            NETWORKS,
            channels=self.image.channels,
            size=self.image.size,
            latent=self.latent,
            distribution=self.distribution,
        )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def example(self) -> Tensor:
        """What the network is compared on: latents of the first seeds."""
        return self.latents(range(5)).cpu()

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
        return self(latents, batch=batch)

    @torch.no_grad()
    def __call__(self, latents: Tensor, *, batch: int = 64) -> Tensor:
        """Images [N, C, S, S] in [-1, 1] of latents [N, latent], N at least 1."""
        return torch.cat([self.network(part) for part in latents.split(batch)]).clamp(-1, 1)  # type: ignore[no-untyped-call]
