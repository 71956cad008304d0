"""One training step of any adversarial system: gradients, check, update, average. No I/O, no host read.

A step plays the system's turns in order. After each turn its players are updated, unless a gradient or a
logged value is not finite: then, decided on the device, nothing of that turn is applied. Statistics add up on
the device until `TrainState.read_statistics` is called, once per tick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.contract import Batch, Draw, ImageShape, Remembers, System, Turn
from fastgan.dist import ALONE, Ranks, playing, sum_over_ranks
from fastgan.errors import FastganError, suggest
from fastgan.flat import GradientMean
from fastgan.nn import share_statistics
from fastgan.optim import Averaging, Optimizer, PlayerState
from fastgan.schedule import Progress

PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass
class TrainState:
    """Everything that changes in training, saved and restored as a whole.

    players: name -> weights, average, optimiser
    step:    steps done
    samples: real images taken from the order of the data so far, over all ranks; the next batch starts here
    seen:    0-dim float64 on the device: the same count, read by schedules
    skipped: [players, 2] int64 on the device: updates of each player that were not applied because something was not
             finite: in all, and in a row
    memory:  what the system's turns change besides (contract.Remembers)
    """

    players: dict[str, PlayerState]
    device: torch.device
    step: int = 0
    samples: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)
    seen: Tensor = field(init=False)
    skipped: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.seen = torch.zeros((), dtype=torch.float64, device=self.device)
        self.skipped = torch.zeros(len(self.players), 2, dtype=torch.int64, device=self.device)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Name -> network that is trained."""
        return {name: player.module for name, player in self.players.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(player.params[0].dtype for player in self.players.values())

    @property
    def averages(self) -> dict[str, nn.Module]:
        """Name -> averaged network where there is one, else the trained one: what samples are drawn from."""
        return {name: player.average or player.module for name, player in self.players.items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors by file: "generator", "generator.ema", "generator.optimizer", ..., "counters"."""
        files: dict[str, dict[str, Tensor]] = {"counters": {"seen": self.seen, "skipped": self.skipped}}
        for name, player in self.players.items():
            for part, tensors in player.tensors().items():
                files[f"{name}.{part}" if part else name] = tensors
        return files | ({"memory": self.memory} if self.memory else {})

    def counters(self) -> dict[str, int]:
        return {"step": self.step, "samples": self.samples}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], counters: Mapping[str, int]) -> None:
        """Take over a saved state, or raise FastganError and change nothing."""
        own = self.tensors()
        for file, mine in own.items():
            check_tensors(file, mine, tensors.get(file))
        for file, mine in own.items():
            for key, tensor in mine.items():
                tensor.copy_(tensors[file][key])
        self.step, self.samples = int(counters["step"]), int(counters["samples"])

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """First weights from files by name ("critic", "generator.ema", ...); a lone other file is the generator's."""
        if len(tensors) == 1 and next(iter(tensors)).split(".")[0] not in self.players:
            tensors = {"generator": next(iter(tensors.values()))}
        found = [name for name in self.players if name in tensors or f"{name}.ema" in tensors]
        if not found:
            raise FastganError(f"{source} has no weights of {' or '.join(self.players)}")
        for name in found:
            player = self.players[name]
            for part, module in (("", player.module), ("ema", player.average)):
                if module is not None:
                    own, other = (f"{name}.ema", name) if part else (name, f"{name}.ema")
                    weights = tensors.get(own, tensors.get(other))
                    mine = module.state_dict()
                    check_tensors(f"{source}: {name}", mine, weights)
                    for key, tensor in mine.items():
                        tensor.copy_(weights[key])  # type: ignore[index]


def check_tensors(what: str, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor] | None) -> None:
    """Raise FastganError unless `theirs` has exactly the names and shapes of `mine`."""
    if theirs is None:
        raise FastganError(f"the checkpoint has no {what!r}: it belongs to another system; check --preset")
    for key, tensor in mine.items():
        if key not in theirs:
            raise FastganError(
                f"the checkpoint's {what!r} has no {key!r}: it is of another network; use the preset and options "
                f"that it was made with"
            )
        if theirs[key].shape != tensor.shape:
            raise FastganError(
                f"the checkpoint's {what!r} is of another network: {key} is {list(theirs[key].shape)} there and "
                f"{list(tensor.shape)} here; use the preset and options that it was made with"
            )
    extra = sorted(set(theirs) - set(mine))
    if extra:
        raise FastganError(f"the checkpoint's {what!r} is of another network: {extra[0]} is unknown here")


def new_state(
    system: System,
    image: ImageShape,
    optimizers: Mapping[str, Optimizer],
    averaging: Averaging,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> TrainState:
    """A fresh state: networks initialised from `seed` alone, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = system.players(image)
    for name in optimizers:
        if name not in modules:
            raise FastganError(f"optim.{name}: the system has no such player{suggest(name, modules)}")
    states = {}
    for name, module in modules.items():
        if name not in optimizers:
            raise FastganError(f"optim.{name} is missing: every player needs an optimiser")
        module.to(device=device, dtype=dtype, memory_format=memory_format).train()  # type: ignore[call-overload]
        averaged = name in system.averaged and averaging.halflife_kimg > 0
        states[name] = PlayerState(module, optimizers[name], averaged=averaged)
    memory = system.memory(device) if isinstance(system, Remembers) else {}
    return TrainState(states, device, memory=memory)


def autocast_of(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that a step computes in for one of PRECISIONS; None: that of the weights."""
    fit = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and fit) else None


class Step:
    """The training step of a system over a state.

    Call it with the batches of one step (`batches` of them, each of `batch` images per rank). On several ranks each
    plays it on its part of the global batch; gradients and statistics are averaged once per turn, with one all-reduce,
    and the networks' batch normalisations share their statistics.
    """

    def __init__(
        self,
        system: System,
        state: TrainState,
        averaging: Averaging,
        *,
        seed: int,
        batch: int,
        total: int,
        ranks: Ranks = ALONE,
        autocast: torch.dtype | None = None,
    ) -> None:
        """total: images of the whole run, of which schedules are fractions; ranks: that play each step together
        autocast: bfloat16 for mixed precision; weights, gradients, moments and averages stay what they are"""
        self.system, self.state, self.averaging = system, state, averaging
        self.seed, self.global_batch = seed, batch * ranks.world
        self.ranks, self._mean = ranks, GradientMean(ranks)
        if ranks.world > 1:
            for module in state.modules.values():
                share_statistics(module, sum_over_ranks)
        self.autocast = autocast
        self.progress = Progress(torch.zeros_like(state.seen))
        self.scalars = {name: self.progress.value(value) for name, value in system.schedules().items()}
        for player in state.players.values():  # made now, not within a turn that is captured
            player.values(self.progress)
        self.turns = system.turns(state.modules, self.scalars | state.memory)
        self.batches = self._batches_of(0)
        self.cycle = math.lcm(*(turn.every for turn in self.turns))  # after so many steps the phases repeat
        assert all(self._batches_of(s) == self.batches for s in range(min(self.cycle, 1000))), "steps differ in batches"
        self._decay = torch.zeros_like(state.seen)
        self._total = float(total)
        self._rows = {name: row for row, name in enumerate(state.players)}
        self._sums: dict[tuple[str, tuple[str, ...]], Tensor] = {}  # (turn, names of its values) -> sums

    def _batches_of(self, step: int) -> int:
        """Batches that step number `step` takes; the same for all, so that samples can be counted by steps."""
        return sum(turn.repeat for turn in self.turns if turn.fresh and turn.plays(step))

    def __call__(self, next_batch: Callable[[], Batch]) -> None:
        """Play all turns of the next step, on batches from `next_batch`, and advance the state.

        All batches are fetched before anything changes: where that raises, the state is as it was.
        """
        self.run(self.fetch(next_batch))
        self.advance()

    def fetch(self, next_batch: Callable[[], Batch]) -> list[Batch]:
        """The batches of one step."""
        return [next_batch() for _ in range(self.batches)]

    @property
    def phase(self) -> tuple[int, ...]:
        """Numbers of the turns that the next step plays: all that its number decides."""
        return tuple(number for number, turn in enumerate(self.turns) if turn.plays(self.state.step))

    def run(self, batches: Sequence[Batch]) -> None:
        """Everything that the device does in the next step: what a graph captures. Follow it by `advance`."""
        fresh, batch = iter(batches), batches[0]
        self._schedule()
        for number in self.phase:
            turn = self.turns[number]
            for _ in range(turn.repeat):
                batch = next(fresh) if turn.fresh else batch
                self.play(turn, batch, Draw(self.seed, batch.index, stream=number))

    def advance(self) -> None:
        """Count the step on the host."""
        self.state.step += 1
        self.state.samples += self.batches * self.global_batch

    def _schedule(self) -> None:
        """Advance the device's count of images and set every scheduled scalar from it."""
        self.progress.advance(self.state.seen / self._total)
        images = self.batches * self.global_batch
        self.state.seen.add_(images)
        self._decay.copy_(self.averaging.decay(self.state.seen, images))

    def play(self, turn: Turn, batch: Batch, draw: Draw) -> None:
        """One turn: gradients, then the update of its players, or nothing where something is not finite."""
        movers = {name: self.state.players[name] for name in turn.players}
        players = self.state.players.values()
        saved = [player.buffers.save() for player in players]
        for player in movers.values():
            player.zero_grad()
        autocast = torch.autocast(self.state.device.type, self.autocast) if self.autocast else nullcontext()
        with autocast, playing(self.ranks):
            statistics = turn.gradients(batch, draw)
        if self.ranks.world > 1:
            statistics = self._over_ranks(movers, statistics)
        norms = {name: player.gradient_norm() for name, player in movers.items()}
        suffixes = {name: f".{name}" if len(norms) > 1 else "" for name in norms}
        statistics = statistics | {f"gradient_norm{suffixes[name]}": norm for name, norm in norms.items()}
        # The last term is 1: summed up, it counts the turns that were applied.
        one = self.progress.value(1.0)
        terms = torch.stack([value.detach() for value in (*statistics.values(), one)])  # float64, as `one` is
        zero = (terms * 0.0).sum()  # or NaN
        finite, skip = zero == 0, zero != 0
        for player, buffers in zip(players, saved, strict=True):
            player.buffers.restore(buffers, where=skip)
        for name, player in movers.items():
            decay = self._decay if turn.average else self.progress.value(1.0)
            player.update(self.progress, decay, norms[name], skip)
            self.state.skipped[self._rows[name]].add_(skip)
            self.state.skipped[self._rows[name], 1].mul_(skip)
        key = (turn.name, tuple(statistics))
        if key not in self._sums:
            self._sums[key] = torch.zeros_like(terms)
        self._sums[key].add_(torch.where(finite, terms, 0.0))

    def _over_ranks(self, movers: Mapping[str, PlayerState], statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average the gradients of the movers over the ranks, and with them the statistics, which are returned.

        From here on all ranks have the same bits: norms, what is finite and what is applied are the same on all.
        """
        parameters = [p for player in movers.values() for p in player.params]
        numbers = [value.detach().double() for value in statistics.values()]
        means = self._mean(parameters, torch.stack([*numbers, self.progress.value(1.0)]))
        return dict(zip(statistics, means, strict=False))

    def read_statistics(self) -> dict[str, Any]:
        """Means since the last call; updates skipped in all and, by the worst player, in a row. Reads the device."""
        numbers = torch.cat([*self._sums.values(), self.state.skipped.double().flatten()]).tolist()
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for (turn, names), tensor in self._sums.items():
            *values, count = (numbers.pop(0) for _ in range(len(names) + 1))
            for name, value in zip(names, values, strict=True):
                sums[f"{turn}.{name}"] = sums.get(f"{turn}.{name}", 0.0) + value
                counts[f"{turn}.{name}"] = counts.get(f"{turn}.{name}", 0.0) + count
            tensor.zero_()
        means = {name: sums[name] / counts[name] if counts[name] else float("nan") for name in sums}
        return means | {"skipped": int(sum(numbers[0::2])), "skipped_in_a_row": int(max(numbers[1::2]))}
