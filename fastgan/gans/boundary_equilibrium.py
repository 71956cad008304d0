"""Critics that are autoencoders: BEGAN (Berthelot et al. 2017, arXiv:1703.10717), EBGAN (Zhao et al. 2017,
arXiv:1609.03126).

Players: a generator G(z) and a critic D, an autoencoder. The energy of an image is its error, L(v) = mean over
pixels of |v - D(v)|^power. A step of BEGAN is

    critic     minimises  L(x) - k L(G(z))
    generator  minimises  L(G(z)),  and then  k <- clip(k + rate (gamma L(x) - L(G(z))), 0, 1)

(section 3.4): k holds the ratio of the two energies at gamma, a lower gamma being less diverse. The log has the
measure of convergence M = L(x) + |gamma L(x) - L(G(z))|. With a margin m > 0 it is EBGAN (equations 1 and 2):

    critic     minimises  L(x) + max(0, m - L(G(z)))
    generator  minimises  L(G(z))

k is a buffer of the critic, and so part of checkpoints. `repelling` adds the pulling-away term of EBGAN (section 2.4)
to the generator's loss, in both: with the unit codes s_i that the critic gives to a batch of N samples,

    1 / (N (N - 1)) * sum over i != j of (s_i . s_j)^2 ,      the sum being  |S^T S|^2 - N
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from fastgan.contract import Batch, Draw, ImageShape, Networks, Turn
from fastgan.dist import group_mean, group_sum
from fastgan.errors import FastganError
from fastgan.gans.latents import check_distribution, draw_latents, way
from fastgan.gans.play import at_least_one, frozen, wide
from fastgan.models import DCGAN
from fastgan.schedule import Scheduled


@dataclass(frozen=True)
class BoundaryEquilibriumGAN:
    """Options of GANs whose critic is an autoencoder.

    networks: of the generator; the critic is one of its critics, with `code` outputs, and a generator behind it
    latent:   length of z;  latent_distribution: "uniform" (in [-1, 1), as published) or "normal"
    code:     length of the autoencoder's code
    gamma:    L(G(z)) / L(x) in equilibrium, from 0 to 1
    rate:     of k (lambda_k in the paper)
    power:    1 or 2: of the error
    margin:   m of EBGAN; 0: BEGAN
    repelling: weight of the pulling-away term, which keeps samples from being alike; 0: without it
    """

    networks: Networks = field(default_factory=DCGAN)
    latent: int = 64
    latent_distribution: str = "uniform"
    code: int = 64
    gamma: float = 0.5
    rate: float = 1e-3
    power: int = 1
    margin: float = 0.0
    repelling: float = 0.0

    averaged = ("generator",)
    penalty_every = 1

    def __post_init__(self) -> None:
        check_distribution(self.latent_distribution)
        at_least_one(self, "latent", "code")
        for name, valid, expected in (
            ("gamma", 0 <= self.gamma <= 1, "from 0 to 1"),
            ("rate", self.rate >= 0, "0 or more"),
            ("power", self.power in (1, 2), "1 or 2"),
            ("margin", self.margin >= 0, "0 or more"),
            ("repelling", self.repelling >= 0, "0 or more"),
        ):
            if not valid:
                raise FastganError(f"{name} must be {expected}, got {getattr(self, name)}")

    def schedules(self) -> dict[str, Scheduled]:
        return {}

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return {}

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        coder = self.networks.critic(image, self.code)
        return {
            "generator": self.networks.generator(image, self.latent),
            "critic": Autoencoder(coder, self.networks.generator(image, self.code), self.power),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, players)
        return (
            Turn("critic", ("critic",), play.critic_turn),
            Turn("generator", ("generator",), play.generator_turn, fresh=False),
        )

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
        """A sample, and what the critic's autoencoder makes of it."""
        images = self.generate(players, batch, draw)
        return images, players["critic"](images)


class _Play:
    def __init__(self, options: BoundaryEquilibriumGAN, players: Mapping[str, nn.Module]) -> None:
        self.options, self.generator = options, players["generator"]
        self.critic: Autoencoder = players["critic"]  # type: ignore[assignment]
        self.fake: Tensor | None = None
        self.real_energy: Tensor | None = None

    def critic_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        fake = self.generator(self.options.latents(draw).to(batch.images.dtype))
        real_energy = self.critic.energy(batch.images)
        fake_energy = self.critic.energy(fake.detach())
        against = relu(self.options.margin - fake_energy) if self.options.margin else -self.critic.balance * fake_energy
        loss = (real_energy + against).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.fake, self.real_energy = fake, real_energy.detach().mean()
        return {"loss": loss.detach(), "real_energy": self.real_energy, "fake_energy": fake_energy.detach().mean()}

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.fake is not None, "the generator's turn comes after the critic's"
        assert self.real_energy is not None
        fake, self.fake = self.fake, None
        statistics = {}
        with frozen(self.critic):
            codes = self.critic.codes(fake)
            total = loss = self.critic.energy(fake, codes).mean()
            if self.options.repelling:
                alike = likeness(wide(codes))
                statistics["likeness"] = alike.detach()
                total = loss + self.options.repelling * alike
            total.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            lack = group_mean(self.options.gamma * self.real_energy - loss.detach())
            self.critic.balance.add_(self.options.rate * lack).clamp_(0, 1)
        return {
            "loss": loss.detach(),
            "balance": self.critic.balance.clone(),
            "convergence": self.real_energy + lack.abs(),
            **statistics,
        }


class Autoencoder(nn.Module):
    """x [N, C, S, S] -> the same shape, through a code. balance: k of BEGAN, 0-dim."""

    balance: Tensor

    def __init__(self, coder: nn.Module, decoder: nn.Module, power: int) -> None:
        super().__init__()
        self.coder, self.decoder, self.power = coder, decoder, power
        self.register_buffer("balance", torch.zeros(()))

    def codes(self, x: Tensor) -> Tensor:
        """[N, code]"""
        codes: Tensor = self.coder(x).view(len(x), -1)
        return codes

    def forward(self, x: Tensor) -> Tensor:
        images: Tensor = self.decoder(self.codes(x))
        return images

    def energy(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """L of each image, [N]. codes: of x, where they are there already"""
        made = self.decoder(self.codes(x) if codes is None else codes)
        error = (wide(x) - wide(made)).abs()
        return (error.square() if self.power == 2 else error).flatten(1).mean(1)


def likeness(codes: Tensor) -> Tensor:
    """Mean squared cosine between the codes [N, code] of different samples of the whole batch, 0-dim."""
    unit = codes / codes.norm(dim=1, keepdim=True).clamp(min=1e-12)
    products = group_sum(unit.mT @ unit)
    count = group_sum(codes.new_full((), len(codes)))
    return (products.square().sum() - count) / (count * (count - 1))
