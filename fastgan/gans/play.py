"""What systems of one critic share: their options, and the turns of the critic and of those who play against it.

A step is

    critic     critic_steps times: adds the gradient of  loss.critic(D(real), D(fake)) + penalties  to the critic
    generator  once: adds the gradient of  loss.generator(D(real), D(fake))  to the generator (and who plays with it)

The last critic turn keeps the graph of what it compared, and the generator's turn goes on from there: the generator
does not change in between, so this is the same algorithm with one generator pass less.

Simultaneous updates are another algorithm: the generator follows the gradient that the critic gives before its own
update (Jacobi's order instead of Gauss and Seidel's; Mescheder et al. 2017, arXiv:1705.10461, section 2). That gradient
is  d loss.generator / d D(fake) * g,  with g the slope of the critic at the fakes, which R2 needs anyway: the
generator's turn takes no pass of the critic.

Penalties: R1 on reals (Mescheder et al. 2018, arXiv:1801.04406), R2 on fakes (the same; Huang et al. 2024,
arXiv:2501.05441), WGAN-GP on interpolates (Gulrajani et al. 2017, arXiv:1704.00028). With penalty_every = k they
are part of every k-th step only, k times as strong ("lazy", Karras et al. 2020, arXiv:1912.04958).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgan.augment import Augment, Augmenter
from fastgan.contract import Batch, Draw, ImageShape, Networks, Turn
from fastgan.critic_inputs import Samples
from fastgan.dist import sum_over_ranks
from fastgan.errors import FastganError, suggest
from fastgan.gans.latents import check_distribution, draw_latents, way
from fastgan.losses import LOSSES
from fastgan.models import DCGAN
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, lowest

PENALTIES = ("r1", "r2", "wgan_gp")


@dataclass(frozen=True)
class Game:
    """Options of a system with one critic.

    networks:            the networks (fastgan.models)
    latent:              length of z
    latent_distribution: "normal" (standard), "uniform" (in [-1, 1))
    loss:                a key of fastgan.losses.LOSSES
    r1, r2:              gamma in gamma/2 * mean |grad D|^2 on reals, on fakes; numbers or schedules
    wgan_gp:             lambda in lambda * mean (|grad D| - 1)^2 on interpolates
    penalty_every:       penalties in every k-th step only, k times as strong
    critic_steps:        critic turns per generator turn
    augment:             augmentation of what the critic sees, reals and fakes alike (fastgan.augment)
    """

    networks: Networks = field(default_factory=DCGAN)
    latent: int = 128
    latent_distribution: str = "normal"
    loss: str = "non_saturating"
    r1: Scheduled = 0.0
    r2: Scheduled = 0.0
    wgan_gp: Scheduled = 0.0
    penalty_every: int = 1
    critic_steps: int = 1
    augment: Augment = field(default_factory=Augment)

    # Whether the generator learns from the critic as it was before the step's last update of it: an option of some
    simultaneous = False
    averaged: ClassVar[tuple[str, ...]] = ("generator",)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise FastganError(f"loss {self.loss!r} is unknown{suggest(self.loss, LOSSES)}")
        check_distribution(self.latent_distribution)
        for name in PENALTIES:
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"penalty {name} must be 0 or more, got {getattr(self, name)}")
        at_least_one(self, "latent", "penalty_every", "critic_steps")
        check_augment(self.augment, self.loss)

    def schedules(self) -> dict[str, Scheduled]:
        return {name: getattr(self, name) for name in self.penalties} | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    @property
    def penalties(self) -> tuple[str, ...]:
        """Names of the penalties that are asked for."""
        return tuple(name for name in PENALTIES if getattr(self, name) != 0.0)

    @property
    def lazy(self) -> bool:
        return bool(self.penalties) and self.penalty_every > 1

    def latents(self, draw: Draw) -> Tensor:
        return draw_latents(self.latent_distribution, self.latent, draw)

    def way(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return way(self.latent_distribution, a, b, t)

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.sample(players, self.latents(draw).to(batch.images.dtype), batch.labels)

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return (self.generate(players, batch, draw),)

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = players["generator"](latents)
        return images


@dataclass(frozen=True)
class Compared:
    """What the critic compares: real and fake samples, with the graph of those who made them.

    labels: [N] int64, of real and fake alike, for a critic that takes them
    real_classes, fake_classes: [N] int64, what a critic with a second objective is to find in them
    """

    real: Samples
    fake: Samples
    labels: Tensor | None = None
    real_classes: Tensor | None = None
    fake_classes: Tensor | None = None


class Play:
    """The turns of one game. A system says how real and fake come about (`compare`) and adds objectives of its own.

    movers: the players that move together in the generator's turn
    judge:  what returns the critic's logits [N]: the critic, or a part of what it returns
    """

    movers: tuple[str, ...] = ("generator",)

    def __init__(self, options: Game, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> None:
        self.options, self.players, self.scalars = options, players, scalars
        self.critic = self.judge = players["critic"]
        self.loss, self.augment = LOSSES[options.loss], Augmenter(options.augment, scalars, sum_over_ranks)
        self.kept: Compared | None = None  # from the last critic turn to the generator's
        # The generator's loss, the fakes as the critic saw them, and the gradient of the one by the other.
        self.ready: tuple[Tensor, Tensor, Tensor] | None = None

    def compare(self, batch: Batch, draw: Draw) -> Compared:
        raise NotImplementedError

    def turns(self) -> tuple[Turn, ...]:
        turns, lazy, every = [], self.options.lazy, self.options.penalty_every
        for keep, repeat in ((False, self.options.critic_steps - 1), (True, 1)):
            for rest in (False, True) if lazy else (False,):
                if repeat:
                    gradients = self.critic_turn(keep=keep, penalised=not rest)
                    turns.append(
                        Turn("critic", ("critic",), gradients, repeat=repeat, every=every if lazy else 1, rest=rest)
                    )
        return (*turns, Turn("generator", self.movers, self.generator_turn, fresh=False))

    def critic_turn(self, *, keep: bool, penalised: bool) -> Callable[[Batch, Draw], dict[str, Tensor]]:
        """Critic turn as a function of (batch, draw). keep: leave what was compared to the generator."""
        names = self.options.penalties if penalised else ()

        def gradients(batch: Batch, draw: Draw) -> dict[str, Tensor]:
            with torch.set_grad_enabled(keep):
                compared = self.compare(batch, draw)
            self.kept = compared if keep else None
            statistics = self.train_critic(compared, draw, names, simultaneous=keep and self.options.simultaneous)
            return statistics | augment_statistics(self.augment)

        return gradients

    def train_critic(
        self, compared: Compared, draw: Draw, names: tuple[str, ...], *, simultaneous: bool
    ) -> dict[str, Tensor]:
        """Adds the gradient of the critic's objectives. names: of the penalties that are part of this turn."""
        weights = {name: self.scalars[name] * self.options.penalty_every for name in names}
        raw = bool(self.augment) and bool(names) and self.options.augment.penalty == "raw"
        critic: Callable[..., Tensor] = self.judge
        real, fake = detached(compared.real), compared.fake if simultaneous else detached(compared.fake)
        if raw:
            critic = self.augment.seen_through(critic, draw)
        else:
            real, fake = self.seen(real, draw), self.seen(fake, draw)
        result = critic_backward(
            critic,
            real,
            detached(fake),
            self.loss.critic,
            r1=weights.get("r1", 0.0),
            r2=weights.get("r2", 0.0),
            wgan_gp=weights.get("wgan_gp", 0.0),
            real_labels=compared.labels,
            fake_labels=compared.labels,
            epsilon=draw.uniform().to(first(real).dtype) if "wgan_gp" in names else None,
            method="autograd" if raw else "auto",
            generator_loss=self.loss.generator if simultaneous else None,
        )
        self.augment.observe(result.real_logits)
        if simultaneous:
            assert isinstance(result.fake_gradient, Tensor)
            assert isinstance(fake, Tensor)
            assert result.generator_loss is not None
            self.ready = result.generator_loss, fake, result.fake_gradient
        return {
            "loss": result.loss,
            "real_logits": result.real_logits.mean(),
            "fake_logits": result.fake_logits.mean(),
            **{name: getattr(result, name) for name in names},
        }

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.kept is not None, "the generator's turn comes after the critic's"
        compared, self.kept = self.kept, None
        if self.ready is not None:
            (loss, seen, slope), self.ready = self.ready, None
            seen.backward(slope)  # type: ignore[no-untyped-call]
            return {"loss": loss}
        with frozen(self.critic):
            loss, others = self.generator_loss(compared, draw)
            total = sum(others.values(), start=loss)
            total.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **{name: value.detach() for name, value in others.items()}}

    def generator_loss(self, compared: Compared, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversarial loss of those who made the fakes, and what else they minimise, by name."""
        real = self.score_reals(compared, draw)
        fake = self.score(self.seen(compared.fake, draw), compared.labels)
        return self.loss.generator(wide(real), wide(fake)), {}

    def score(self, samples: Samples, labels: Tensor | None) -> Tensor:
        parts = samples if isinstance(samples, tuple) else (samples,)
        logits: Tensor = self.judge(*parts) if labels is None else self.judge(*parts, labels)
        return logits

    def score_reals(self, compared: Compared, draw: Draw) -> Tensor:
        """Logits of the reals, for the losses that compare with them; else a zero that nobody reads."""
        if not self.loss.generator_compares:
            return first(compared.fake).new_zeros(())
        with torch.no_grad():
            return self.score(self.seen(compared.real, draw), compared.labels)

    def seen(self, samples: Samples, draw: Draw) -> Samples:
        """The samples as the critic sees them: their images augmented."""
        if isinstance(samples, tuple):
            return (self.augment(samples[0], draw), *samples[1:])
        return self.augment(samples, draw)


def first(samples: Samples) -> Tensor:
    return samples[0] if isinstance(samples, tuple) else samples


def at_least_one(options: object, *names: str) -> None:
    """FastganError when one of the named options is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise FastganError(f"{name} must be 1 or more, got {getattr(options, name)}")


def augment_statistics(augment: Augmenter) -> dict[str, Tensor]:
    """The probability of the augmentation, for the statistics of a turn; nothing where it has none."""
    return {} if augment.p is None else {"augment_p": augment.p}


def check_augment(augment: Augment, loss: str) -> None:
    """FastganError where the probability is steered by logits whose sign says nothing."""
    if augment.steered and loss in ("relativistic", "wasserstein"):
        raise FastganError(
            f"augment.target steers by the sign of the critic's logits, which has no meaning with the loss "
            f"{loss!r}; set augment.target=0 and augment.p to a number or a schedule"
        )


def seen_together(augment: Augmenter, parts: tuple[Tensor, ...], draw: Draw) -> tuple[Tensor, ...]:
    """Maps [N, C, S, S] that belong together, such as an image and its source, through the same transformation: as
    the channels of one image."""
    if not augment:
        return parts
    return tuple(torch.split(augment(torch.cat(parts, 1), draw), [part.shape[1] for part in parts], 1))


def needs_labels(system: str, image: ImageShape) -> None:
    """FastganError for data without classes."""
    if not image.classes:
        raise FastganError(
            f"{system} needs labels, and these images have none: give --data a folder with a folder of images per "
            "class, or digits or photos, which have classes"
        )


def detached(samples: Samples) -> Samples:
    return tuple(part.detach() for part in samples) if isinstance(samples, tuple) else samples.detach()


def wide(logits: Tensor) -> Tensor:
    """Half-precision logits in fp32, as the critic's turn has them: losses are sums of small differences."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it no gradient of `module`'s parameters is computed; each one's requires_grad returns after it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
