"""The turns of any system in plain PyTorch: the baseline of systems for which fastgan.baseline has no loop of its own.

The same turns, on networks of PyTorch's own layers and with PyTorch's random numbers: real and fake apart, penalties by
autograd's double backward, fused torch.optim.Adam, gradients set to None, the moving average in one call, nothing read
back. So a careful user's loop, without this project's kernels, sweep, joined batches and update.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.baseline import adam_of, averaged_tensors, unfused
from fastgan.contract import Batch, Draw, ImageShape, Remembers, System
from fastgan.errors import FastganError
from fastgan.kernels._runtime.choice import forced
from fastgan.optim import Averaging, Optimizer
from fastgan.penalty import always
from fastgan.schedule import first

# What torch.compile can be given, best first. It does not differentiate twice what is compiled network by network.
ARRANGEMENTS = ("all networks", "those who make images")


class PlainDraw(Draw):
    """Numbers as PyTorch draws them: other ones at each call."""

    def normal(self, *size: int, dtype: Any = None) -> Tensor:
        return torch.randn(len(self.index), *size, dtype=dtype, device=self.index.device)

    def uniform(self, *size: int, dtype: Any = None) -> Tensor:
        return torch.rand(len(self.index), *size, dtype=dtype, device=self.index.device)

    def integers(self, high: int, *size: int) -> Tensor:
        return torch.randint(high, (len(self.index), *size), device=self.index.device)


def plain_turns(
    system: System,
    image: ImageShape,
    optimizers: dict[str, Optimizer],
    averaging: Averaging,
    device: torch.device,
    layout: torch.memory_format,
    *,
    compiled: str = "",
    dtype: torch.dtype = torch.float32,
) -> Callable[[Batch], None]:
    """loop(batch), which trains fresh players by one step, each turn on that batch, with schedules at their starts.

    compiled: one of ARRANGEMENTS, or "" for none.  FastganError for optimisers that are not plain Adam
    """
    with unfused():
        players = system.players(image)
    for player in players.values():
        player.to(device=device, dtype=dtype, memory_format=layout).train()  # type: ignore[call-overload]
    adams = {name: _adam(name, optimizers[name], player) for name, player in players.items()}
    kept = {name: copy.deepcopy(players[name]) for name in system.averaged if averaging.halflife_kimg}
    averages = [tensor for average in kept.values() for tensor in averaged_tensors(average.requires_grad_(False))]
    values = [tensor for name in kept for tensor in averaged_tensors(players[name])]
    for name, player in players.items():
        if compiled == ARRANGEMENTS[0] or (compiled and not name.startswith("critic")):
            player.compile()
    scalars = {
        name: torch.tensor(first(value), dtype=torch.float64, device=device)
        for name, value in system.schedules().items()
    }
    turns = system.turns(players, scalars | (system.memory(device) if isinstance(system, Remembers) else {}))
    numbers = itertools.count()

    def loop(batch: Batch) -> None:
        number = next(numbers)
        with forced("library"), always("autograd"):
            for turn in [turn for turn in turns if turn.plays(number)]:
                for _ in range(turn.repeat):
                    for name in turn.players:
                        adams[name].zero_grad(set_to_none=True)
                    turn.gradients(batch, PlainDraw(0, batch.index, 0))
                    for name in turn.players:
                        adams[name].step()
        if averages:
            decay = 2.0 ** (-len(batch.images) / (averaging.halflife_kimg * 1000))
            with torch.no_grad():
                torch._foreach_lerp_(averages, values, 1 - decay)

    return loop


def _adam(name: str, options: Optimizer, player: nn.Module) -> torch.optim.Adam:
    if options.kind != "adam" or options.clip_norm or options.clip_weights:
        raise FastganError(f"optim.{name}: the plain loop knows Adam without clipping only; leave --against out")
    return adam_of(options, player)
