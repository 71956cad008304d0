"""What a training step must cost: operations and bytes of its parts from the shapes of the layers (docs/step.md).

In units of one pass over the convolutions and matrices of a network: a forward pass, an input gradient and a weight
gradient take the same operations. Per sample and critic step

    plain critic             3: forward, input gradient, weight gradient; no input gradient of the first layer
    loss and penalty         4: forward, input gradient to the image, forward once more, weight gradient (the sweep)
    generator, for a critic  1: forward, which the generator's own turn goes on from in the last critic step
    generator's turn         critic 2 (forward, input gradient; 1 more where the loss compares with reals), generator 2
    simultaneous updates     critic 0 in the generator's turn, and 4 for the fakes, with or without R2

Bytes are the least that a part has to move where layers do not share passes: each layer reads its input and weights and
writes its output once per pass. Normalisations, activations and sums of branches are taken for part of the layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan.contract import ImageShape
from fastgan.kernels._runtime import plain_layers
from fastgan.losses import LOSSES

UPDATE_ARRAYS = 9  # weight, two moments and average read and written, gradient read


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiplication and an addition are two) and bytes."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times)

    def seconds(self, matmul_rate: float, copy_rate: float) -> float:
        """The least time at these ceilings: operations and transfers side by side."""
        return max(self.flops / matmul_rate, self.bytes / copy_rate)


@dataclass(frozen=True)
class NetworkCost:
    """One pass of one sample through a network; `first`: of that, layers in front of which nothing is trained."""

    whole: Cost
    first: Cost
    parameters: int

    @property
    def plain(self) -> Cost:
        """Forward, input gradient (not by the sample itself) and weight gradient."""
        return self.whole * 3 + self.first * -1


class _Layers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the cost of each convolution and matrix product, and whether its input depends on a parameter."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.found, self.first = width, list[Cost](), list[Cost]()
        self._trained: list[Any] = [p for p in network.parameters() if p.requires_grad]
        self._known = {id(t) for t in self._trained}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operands = [a for a in tree_leaves(args) if isinstance(a, Tensor)]
        flops = _COUNTS.get(func.overloadpacket)
        if flops is not None:
            cost = Cost(flops(out, *args), self.width * (sum(t.numel() for t in operands) + out.numel()))
            self.found.append(cost)
            if id(args[1 if func.overloadpacket is torch.ops.aten.addmm else 0]) not in self._known:
                self.first.append(cost)
        if any(id(t) in self._known for t in operands):
            made = tree_leaves(out)
            self._trained += made  # kept, so that no later tensor gets the same id
            self._known.update(map(id, made))
        return out


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> float:
    """Each weight meets each position of the output, or, transposed, of the input."""
    transposed = rest[4]
    at = x if transposed else out
    return 2.0 * len(out) * weight.numel() * math.prod(at.shape[2:])


_COUNTS: dict[Any, Callable[..., float]] = {
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.mm: lambda out, a, b: 2.0 * out.numel() * a.shape[1],
    torch.ops.aten.addmm: lambda out, bias, a, b, **_: 2.0 * out.numel() * a.shape[1],
    torch.ops.aten.bmm: lambda out, a, b: 2.0 * out.numel() * a.shape[2],
}


def network_cost(network: nn.Module, sample_shape: tuple[int, ...], width: int = 4) -> NetworkCost:
    """Cost per sample of `network` on [N, *sample_shape], counted on tensors without data. width: bytes per number."""
    count = 4  # weights are read once per batch: of little weight, but not of none
    twin = copy.deepcopy(network).to("meta").train()
    with torch.no_grad(), plain_layers(), _Layers(twin, width) as layers:
        twin(torch.empty(count, *sample_shape, device="meta"))
    whole, first = (sum(costs, start=Cost()) * (1 / count) for costs in (layers.found, layers.first))
    return NetworkCost(whole, first, sum(p.numel() for p in network.parameters()))


def step_cost(system: Any, image: ImageShape, batch: int, *, penalised: bool = True, width: int = 4) -> dict[str, Cost]:
    """Parts of an unconditional GAN's step on `batch` images per critic step -> cost.

    penalised: a step with the penalties, of those in which lazy ones come. Updates are those of Adam with an average.
    """
    players = system.players(image)
    generator = network_cost(players["generator"], (system.latent,), width)
    critic = network_cost(players["critic"], (image.channels, image.size, image.size), width)
    wanted = {name for name in ("r1", "r2", "wgan_gp") if penalised and getattr(system, name) != 0.0}
    sides = {name: critic.whole * 4 if name in wanted else critic.plain for name in ("r1", "r2")}
    between = critic.whole * 4 if "wgan_gp" in wanted else Cost()
    turns = (sides["r1"] + sides["r2"] + between) * system.critic_steps
    seen = critic.whole * (3 if LOSSES[system.loss].generator_compares else 2)
    if system.simultaneous:  # the last turn's sweep over the fakes serves the generator, too
        turns += critic.whole * 4 + sides["r2"] * -1
        seen = Cost()
    own = generator.whole * 2 + generator.first * -1
    numbers = system.critic_steps * critic.parameters + generator.parameters
    return {
        "generator forward": generator.whole * (batch * system.critic_steps),
        "critic's turn": turns * batch,
        "generator's turn": (seen + own) * batch,
        "update": Cost(12.0 * numbers, 4.0 * UPDATE_ARRAYS * numbers),
    }


def total(parts: dict[str, Cost]) -> Cost:
    return sum(parts.values(), start=Cost())
