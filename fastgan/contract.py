"""What the trainer and the adversarial systems agree on: shapes, batches, draws and turns.

One training step is a row of *turns*. A turn adds the gradients of its objective into the `.grad` of the
players that it names, and returns 0-dim device tensors for the log. It does no I/O, no update and no host
read, so that each turn can be captured once and replayed. Everything random in it comes from its `Draw`,
a pure function of (seed, global sample number), so that a run can be resumed anywhere, on any number of ranks.

**Several ranks.** Each rank plays a turn on an equal share of the batch; then the gradients and the numbers for the log
are averaged over the ranks. For the same training on any number of ranks, a system has to keep to this:

- Its objective is a mean over samples, pairs or places of its batch: then the average over ranks is the mean over all.
  Anything else that several samples share is taken over the ranks by `fastgan.dist`: `group_mean(t)` for the mean of a
  batch, `group_sum(t)` for a sum, both differentiable to any order. A normaliser: `log(group_mean(exp(x).mean()))`, not
  `log(exp(x).mean())`; a variance: from `group_mean` of x and of x^2; a best or hardest sample: from its own rank only.
- Batch normalisation (`nn.BatchNorm*`, ours) needs nothing: the trainer has its layers share their statistics
  (`fastgan.nn.share_statistics`). F.batch_norm, minibatch standard deviation and the like do need the above.
- All ranks call what is collective equally often and in the same order, also in backward: no `if` on values of samples
  around it. Which parameters get a gradient in a turn does not depend on samples either.
- Buffers change alike on all ranks: from weights, from shared statistics, or not at all.
- Random numbers come from the turn's `Draw` only. One for the whole batch, such as a common crop, is that of its first
  sample: `of_first(draw.uniform()[0])`.

`tests/ranks.py` runs a function in several ranks; `tests/test_ranks_agree.py` compares all presets on 1 and 2 ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastgan.kernels import counter_noise
from fastgan.schedule import Scheduled

# Streams of Draw: turns use 0, 1, 2, ...; pictures for people use one that no turn reaches.
PICTURE_STREAM = 1 << 20


@dataclass(frozen=True)
class ImageShape:
    """What the data is: square images, `[channels, size, size]`, and what comes with each.

    classes:         number of classes of a labelled set; 0: no labels
    source_channels: channels of the second set of a translation (Batch.source); 0: there is none
    """

    channels: int
    size: int
    classes: int = 0
    source_channels: int = 0


@dataclass(frozen=True)
class Batch:
    """Real images of one rank.

    images: [N, C, H, W], float in [-1, 1], channels-last strides
    labels: [N] int64, or None for a set without classes
    index:  [N] int64, global sample numbers, on the device of the images
    source: [N, C', H, W] images to translate from: the partners of `images`, or independent ones of another domain;
            None for a set without them
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    source: Tensor | None = None


class Draw:
    """Random numbers of one turn: functions of (seed, sample number, stream, which call of the turn this is).

    Two draws with the same arguments give the same numbers in the same order of calls. `stream` keeps the
    turns of a step apart; each call takes the next of the `CALLS` sub-streams.
    """

    CALLS = 256

    def __init__(self, seed: int, index: Tensor, stream: int) -> None:
        self.seed, self.index, self.stream = seed, index, stream
        self._calls = 0

    def _next_stream(self) -> int:
        assert self._calls < self.CALLS, "a turn drew more than Draw.CALLS times"
        self._calls += 1
        return self.stream * self.CALLS + self._calls - 1

    def normal(self, *size: int, dtype: Any = None) -> Tensor:
        """Standard normal numbers, [N, *size]."""
        return counter_noise.normal(self.seed, self.index, size, stream=self._next_stream(), **_typed(dtype))

    def uniform(self, *size: int, dtype: Any = None) -> Tensor:
        """Uniform numbers in [0, 1), [N, *size]."""
        return counter_noise.uniform(self.seed, self.index, size, stream=self._next_stream(), **_typed(dtype))

    def integers(self, high: int, *size: int) -> Tensor:
        """Integers in [0, high), [N, *size] int64."""
        return counter_noise.integers(self.seed, self.index, size, high=high, stream=self._next_stream())


def _typed(dtype: Any) -> dict[str, Any]:
    return {} if dtype is None else {"dtype": dtype}


@dataclass(frozen=True)
class Turn:
    """One player's (or several players') move in a training step.

    gradients(batch, draw): adds into the `.grad` of `players`, returns 0-dim device tensors for the log
    repeat: how many times in a row, each on a batch of its own
    every:  the turn is part of every `every`-th step only (lazy phases); with `rest`, of all the other steps
    fresh:  it takes new batches of reals; else the batch of the turn before it, and it may go on from what that turn
            computed: the two are captured together, once per phase of the turn before
    average: the averages of its players take a step, too; not where this is one more update of a player that has
            another one in the same step (a lazy penalty with an update of its own)
    """

    name: str
    players: tuple[str, ...]
    gradients: Callable[[Batch, Draw], dict[str, Tensor]]
    repeat: int = 1
    every: int = 1
    rest: bool = False
    fresh: bool = True
    average: bool = True

    def plays(self, step: int) -> bool:
        """Whether the turn is part of step number `step` (from 0)."""
        return (step % self.every != 0) if self.rest else (step % self.every == 0)


class Networks(Protocol):
    """Options of one network family (fastgan.models): plain fields, and the two networks they describe."""

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        """z [N, latent] -> [N, C, S, S]."""

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        """x [N, C, S, S] -> logits [N], or [N, outputs] where there are several: classes, latents, features."""


@runtime_checkable
class LabelledNetworks(Protocol):
    """Networks whose generator can take labels inside, by conditional batch normalisation."""

    def labelled_generator(self, image: ImageShape, latent: int) -> nn.Module:
        """(z [N, latent], labels [N] int64 below image.classes) -> [N, C, S, S]."""


class Translator(Protocol):
    """Options of one family of networks that make images of images of the same size (fastgan.models)."""

    def translator(self, image: ImageShape, channels: int) -> nn.Module:
        """x [N, channels, S, S] (and noise [N, noise_numbers] in training) -> [N, C, S, S] in (-1, 1)."""

    def noise_numbers(self, image: ImageShape) -> int:
        """How many uniform numbers per image the network takes as noise; 0: none."""


class PairCritic(Protocol):
    """Options of one family of critics that may see a source beside the image (fastgan.models)."""

    def critic(self, image: ImageShape, channels: int = 0) -> nn.Module:
        """x [N, C, S, S] (and source [N, channels, S, S]) -> logits [N] or [N, 1, h, w].

        Its method maps(x, source) has the activations of its blocks.
        """


class System(Protocol):
    """An adversarial system (fastgan.gans): a frozen dataclass of options, its players and its turns."""

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the players of which an exponential moving average is kept."""

    def schedules(self) -> Mapping[str, Scheduled]:
        """Name -> value or Schedule of every number that may change in training (penalty coefficients...)."""

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        """The networks, freshly initialised from torch's global generator.

        FastganError where the data has not what the system needs: labels, a source, another size.
        """

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        """The turns of a step, in order; `scalars` has a 0-dim float64 device tensor per schedule.

        Of a system that is `Remembers`, `scalars` has the tensors of its memory too.
        """

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        """What the system makes of a batch, [N, C, S, S] in [-1, 1], one per image: what metrics score."""

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """What a person should see of it, side by side: (generated,), (source, translated, target), ...

        Each [N, 1 or 3, H, W] in [-1, 1], of one height. The players are in evaluation mode.
        """


@runtime_checkable
class Remembers(Protocol):
    """A system whose turns change more than their players."""

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        """Fresh tensors on `device`, by name, that the turns change in place: saved and restored with the players."""


# What some systems can do besides, each for a command of its own. All run with players in evaluation mode.


@runtime_checkable
class Samples(Protocol):
    """Makes images from latents: `fastgan sample`, `fastgan interpolate`."""

    def latents(self, draw: Draw) -> Tensor:
        """Latents of the generator, [N, latent]."""

    def way(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Latents [T, latent] on the way from a [latent] to b [latent], at t [T] in [0, 1]."""

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images [N, C, S, S] in [-1, 1] for `latents` and, where the system has classes, `labels` [N] int64."""


@runtime_checkable
class Styles(Protocol):
    """Has a space of styles between latents and images: `--truncation`, `fastgan interpolate --space w`."""

    def truncated(self, truncation: float) -> Any:
        """The system whose pictures have their styles so near to the mean one: 1 as they are, 0 the mean."""

    def styles(self, players: Mapping[str, nn.Module], latents: Tensor) -> Tensor:
        """Styles [N, style] of latents [N, latent]; straight lines are the ways between them."""

    def from_styles(self, players: Mapping[str, nn.Module], styles: Tensor) -> Tensor:
        """Images [N, C, S, S] of styles [N, style]."""


@runtime_checkable
class Labelled(Protocol):
    """Makes images of a class that one asks for: `fastgan sample --labels`."""

    @property
    def labelled(self) -> bool:
        """True."""


@runtime_checkable
class Encodes(Protocol):
    """Finds latents of images: `fastgan encode`."""

    def encode(self, players: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        """Latents [N, latent] of images [N, C, S, S]."""

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """As Samples.sample: the reconstruction."""


@runtime_checkable
class Translates(Protocol):
    """Makes an image of one domain from one of the other: `fastgan translate`."""

    def translate(self, players: Mapping[str, nn.Module], images: Tensor, *, back: bool = False) -> Tensor:
        """Source images [N, C', H, W] as images of the target domain; back: the other way, where there is one."""


@runtime_checkable
class Upscales(Protocol):
    """Enlarges images: `fastgan upscale`."""

    @property
    def scale(self) -> int:
        """By how much."""

    @property
    def margin(self) -> int:
        """An output depends on pixels of the input at most so far away: what tiles have to overlap by."""

    def upscale(self, players: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, scale H, scale W], any H and W."""


@runtime_checkable
class Inpaints(Protocol):
    """Fills holes: `fastgan inpaint`."""

    @property
    def box(self) -> tuple[float, float]:
        """Shortest and longest side of a box that is drawn, as shares of the image's."""

    def inpaint(self, players: Mapping[str, nn.Module], images: Tensor, masks: Tensor, draw: Draw) -> Tensor:
        """Images [N, C, S, S] with what is under `masks` [N, 1, S, S] (1: unknown) filled; the rest stays as it was."""


def commands_of(system: System) -> tuple[str, ...]:
    """Names of the commands that a system can be used with."""
    able = {"sample": Samples, "encode": Encodes, "translate": Translates, "upscale": Upscales, "inpaint": Inpaints}
    return tuple(name for name, kind in able.items() if isinstance(system, kind))
