"""Pictures from a trained generator: from seeds, and on the way from one seed to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastgan.contract import PICTURE_STREAM, Draw, ImageShape, System
from fastgan.step import check_tensors


def picture_latents(system: System, seeds: Sequence[int], device: torch.device) -> Tensor:
    """Latents [N, latent] of the pictures number `seeds`: the same for every run of a system."""
    index = torch.tensor(list(seeds), dtype=torch.int64, device=device)
    return system.latents(Draw(0, index, PICTURE_STREAM))


@torch.no_grad()
def sample_images(system: System, players: Mapping[str, nn.Module], latents: Tensor, *, batch: int = 64) -> Tensor:
    """Images [N, C, S, S] in [-1, 1] for latents [N, latent], in evaluation mode, `batch` at a time."""
    modes = {name: player.training for name, player in players.items()}
    try:
        for player in players.values():
            player.eval()
        dtype = next(players["generator"].parameters()).dtype
        images = [system.sample(players, part.to(dtype)) for part in torch.split(latents, batch)]
    finally:
        for name, player in players.items():
            player.train(modes[name])
    return torch.cat(images).clamp(-1, 1)


def latent_path(system: System, latents: Tensor, frames: int) -> Tensor:
    """Closed path through latents [K, D], `frames` points from each to the next: [K * frames, D]."""
    t = torch.arange(frames, dtype=torch.float64, device=latents.device) / frames
    points = [*latents.double(), latents[0].double()]
    return torch.cat([system.way(a, b, t) for a, b in pairwise(points)]).to(latents.dtype)


def load_players(
    system: System,
    image: ImageShape,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    averaged: bool,
    device: torch.device,
) -> dict[str, nn.Module]:
    """The players of a saved run, for inference: averaged weights where there are some, else the trained ones."""
    players = system.players(image)
    for name, player in players.items():
        file = f"{name}.ema" if averaged and f"{name}.ema" in tensors else name
        check_tensors(file, player.state_dict(), tensors.get(file))
        player.load_state_dict(tensors[file])
        player.to(device).eval().requires_grad_(False)
    return players
