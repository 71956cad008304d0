"""The unconditional GAN (Goodfellow et al. 2014, arXiv:1406.2661) with the losses and penalties in use today.

Players: a generator G(z) and a critic D(x). A step is

    critic     critic_steps times: adds the gradient of  loss.critic(D(x), D(G(z))) + penalties  to the critic
    generator  once: adds the gradient of  loss.generator(D(x), D(G(z)))  to the generator

The last critic turn keeps the graph of its G(z), and the generator's turn goes on from there: the generator does
not change in between, so this is the same algorithm with one generator pass less.

Simultaneous updates are another algorithm: the generator follows the gradient that the critic gives before its own
update (Jacobi's order instead of Gauss and Seidel's; Mescheder et al. 2017, arXiv:1705.10461, section 2). That gradient
is  d loss.generator / d D(G(z)) * g,  with g the slope of the critic at the fakes, which R2 needs anyway: the
generator's turn takes no pass of the critic.

Penalties: R1 on reals (Mescheder et al. 2018, arXiv:1801.04406), R2 on fakes (the same; Huang et al. 2024,
arXiv:2501.05441), WGAN-GP on interpolates (Gulrajani et al. 2017, arXiv:1704.00028). With penalty_every = k they
are part of every k-th step only, k times as strong ("lazy", Karras et al. 2020, arXiv:1912.04958).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastgan.augment import Augment, Augmenter
from fastgan.contract import Batch, Draw, ImageShape, Networks, Turn
from fastgan.errors import FastganError, suggest
from fastgan.gans.latents import check_distribution, draw_latents, way
from fastgan.losses import LOSSES
from fastgan.models import DCGAN
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, lowest

PENALTIES = ("r1", "r2", "wgan_gp")


@dataclass(frozen=True)
class UnconditionalGAN:
    """Options of the unconditional GAN.

    networks:            the two networks (fastgan.models)
    latent:              length of z
    latent_distribution: "normal" (standard), "uniform" (in [-1, 1))
    loss:                a key of fastgan.losses.LOSSES
    r1, r2:              gamma in gamma/2 * mean |grad D|^2 on reals, on fakes; numbers or schedules
    wgan_gp:             lambda in lambda * mean (|grad D| - 1)^2 on interpolates
    penalty_every:       penalties in every k-th step only, k times as strong
    critic_steps:        critic turns per generator turn
    augment:             augmentation of what the critic sees, reals and fakes alike (fastgan.augment)
    simultaneous:        the generator learns from the critic as it was before the step's last update of it
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
    simultaneous: bool = False

    averaged = ("generator",)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise FastganError(f"loss {self.loss!r} is unknown{suggest(self.loss, LOSSES)}")
        check_distribution(self.latent_distribution)
        for name in PENALTIES:
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"penalty {name} must be 0 or more, got {getattr(self, name)}")
        for name in ("latent", "penalty_every", "critic_steps"):
            if getattr(self, name) < 1:
                raise FastganError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.augment.steered and self.loss in ("relativistic", "wasserstein"):
            raise FastganError(
                f"augment.target steers by the sign of the critic's logits, which has no meaning with the loss "
                f"{self.loss!r}; set augment.target=0 and augment.p to a number or a schedule"
            )

    def schedules(self) -> dict[str, Scheduled]:
        return {name: getattr(self, name) for name in self._penalties} | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    @property
    def _penalties(self) -> tuple[str, ...]:
        return tuple(name for name in PENALTIES if getattr(self, name) != 0.0)

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        return {
            "generator": self.networks.generator(image, self.latent),
            "critic": self.networks.critic(image),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, players["generator"], players["critic"], scalars)
        lazy = bool(self._penalties) and self.penalty_every > 1
        turns = []
        for keep, repeat in ((False, self.critic_steps - 1), (True, 1)):
            for rest in (False, True) if lazy else (False,):
                if repeat:
                    turns.append(
                        Turn(
                            "critic",
                            ("critic",),
                            play.critic_turn(keep=keep, penalised=not rest),
                            repeat=repeat,
                            every=self.penalty_every if lazy else 1,
                            rest=rest,
                        )
                    )
        return (*turns, Turn("generator", ("generator",), play.generator_turn, fresh=False))

    def latents(self, draw: Draw) -> Tensor:
        return draw_latents(self.latent_distribution, self.latent, draw)

    def way(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return way(self.latent_distribution, a, b, t)

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = players["generator"](latents)
        return images

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.sample(players, self.latents(draw).to(batch.images.dtype))

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return (self.generate(players, batch, draw),)


class _Play:
    """The turns of one game: the players, the penalty coefficients and the fakes that two turns share."""

    def __init__(
        self,
        options: UnconditionalGAN,
        generator: nn.Module,
        critic: nn.Module,
        scalars: Mapping[str, Tensor],
    ) -> None:
        self.options, self.generator, self.critic, self.scalars = options, generator, critic, scalars
        self.loss, self.augment = LOSSES[options.loss], Augmenter(options.augment, scalars)
        self.fake: Tensor | None = None
        # The generator's loss, the fakes as the critic saw them, and the gradient of the one by the other.
        self.ready: tuple[Tensor, Tensor, Tensor] | None = None

    def critic_turn(self, *, keep: bool, penalised: bool) -> Callable[[Batch, Draw], dict[str, Tensor]]:
        """Critic turn as a function of (batch, draw). keep: leave the fakes and their graph to the generator."""
        simultaneous = keep and self.options.simultaneous

        def gradients(batch: Batch, draw: Draw) -> dict[str, Tensor]:
            latents = self.options.latents(draw).to(batch.images.dtype)
            with torch.set_grad_enabled(keep):
                fake = self.generator(latents)
            self.fake = fake if keep else None
            names = self.options._penalties if penalised else ()
            weights = {name: self.scalars[name] * self.options.penalty_every for name in names}
            raw = bool(self.augment) and bool(names) and self.options.augment.penalty == "raw"
            critic: Callable[[Tensor], Tensor] = self.critic
            real, fake = batch.images, fake if simultaneous else fake.detach()
            if raw:
                critic = self.augment.seen_through(critic, draw)
            else:
                real, fake = self.augment(real, draw), self.augment(fake, draw)
            result = critic_backward(
                critic,
                real,
                fake.detach(),
                self.loss.critic,
                r1=weights.get("r1", 0.0),
                r2=weights.get("r2", 0.0),
                wgan_gp=weights.get("wgan_gp", 0.0),
                epsilon=draw.uniform().to(batch.images.dtype) if "wgan_gp" in names else None,
                method="autograd" if raw else "auto",
                generator_loss=self.loss.generator if simultaneous else None,
            )
            self.augment.observe(result.real_logits)
            if simultaneous:
                assert isinstance(result.fake_gradient, Tensor)
                assert result.generator_loss is not None
                self.ready = result.generator_loss, fake, result.fake_gradient
            return {
                "loss": result.loss,
                "real_logits": result.real_logits.mean(),
                "fake_logits": result.fake_logits.mean(),
                **{name: getattr(result, name) for name in names},
                **({} if self.augment.p is None else {"augment_p": self.augment.p}),
            }

        return gradients

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.fake is not None, "the generator's turn comes after the critic's"
        fake, self.fake = self.fake, None
        if self.ready is not None:
            (loss, seen, slope), self.ready = self.ready, None
            seen.backward(slope)  # type: ignore[no-untyped-call]
            return {"loss": loss}
        with frozen(self.critic):
            real_logits = self._real_logits(batch, draw)
            loss = self.loss.generator(_wide(real_logits), _wide(self.critic(self.augment(fake, draw))))
            loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach()}

    def _real_logits(self, batch: Batch, draw: Draw) -> Tensor:
        """Logits of the reals, for the losses that compare with them."""
        if not self.loss.generator_compares:
            return batch.images.new_zeros(())
        with torch.no_grad():
            logits: Tensor = self.critic(self.augment(batch.images, draw))
        return logits


def _wide(logits: Tensor) -> Tensor:
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
