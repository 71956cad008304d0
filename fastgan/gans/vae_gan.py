"""VAE-GAN (Larsen et al. 2016, arXiv:1512.09300): a variational autoencoder whose error is that of a critic's features.

Players: an encoder E(x) = (mu, log sigma^2), a generator G(z), the decoder, and a critic D with features f. With
reals x, z ~ E(x), reconstructions x~ = G(z) and samples x_p = G(z_p) of z_p ~ N(0, 1), algorithm 1 is

    prior       KL(N(mu, sigma^2) | N(0, 1)), summed over z, mean over images
    likeness    1/2 |f(x) - f(x~)|^2, summed over features, mean over images (equation 7, up to a constant)
    critic      minimises  loss.critic(D(x), D of x~ and x_p) + penalties
    generator   the encoder minimises  prior * KL + likeness
                the generator minimises  similarity * likeness + loss.generator(D(x), D of x~ and x_p)

The features are those in front of the critic's last layer. z goes from the encoder to the generator, but the
adversarial loss does not go back to the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.errors import FastganError
from fastgan.gans.play import Compared, Game, Play, at_least_one, frozen, wide
from fastgan.losses import LOSSES


@dataclass(frozen=True)
class VAEGAN(Game):
    """Options of the VAE-GAN, besides those of every game with one critic; wgan_gp stays 0 and latents are normal.

    prior:      weight of the KL divergence
    similarity: weight of the likeness in the generator's objective (gamma in the paper)
    features:   number of the critic's features
    """

    prior: float = 1.0
    similarity: float = 1.0
    features: int = 128

    averaged = ("generator", "encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "features")
        for name in ("prior", "similarity"):
            if not getattr(self, name) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.augment.kind != "none":
            raise FastganError(
                "augment: a VAE-GAN compares an image with its reconstruction, which augmentation would tell apart; "
                "leave augment.kind at 'none'"
            )
        if self.latent_distribution != "normal":
            raise FastganError(
                f"latent_distribution {self.latent_distribution!r}: the prior of a VAE-GAN is normal; leave it out"
            )
        if LOSSES[self.loss].generator_compares or self.wgan_gp != 0.0:
            raise FastganError(
                "a VAE-GAN has two fakes for each real image, which neither loss 'relativistic' nor wgan_gp can pair; "
                "use another loss, r1 and r2"
            )

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        return {
            "generator": self.networks.generator(image, self.latent),
            "encoder": self.networks.critic(image, 2 * self.latent),
            "critic": FeatureCritic(self.networks.critic(image, self.features), self.features),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        return _Play(self, players, scalars).turns()

    def encode(self, players: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        """The mean."""
        codes: Tensor = players["encoder"](images)[:, : self.latent]
        return codes

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        """An image, its reconstruction, and a sample."""
        reconstruction = self.sample(players, self.encode(players, batch.images))
        return (batch.images, reconstruction, self.generate(players, batch, draw))


class _Play(Play):
    movers = ("generator", "encoder")
    options: VAEGAN
    divergence: Tensor

    def compare(self, batch: Batch, draw: Draw) -> Compared:
        mean, log_variance = wide(self.players["encoder"](batch.images)).chunk(2, 1)
        self.divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        noise = draw.normal(self.options.latent).to(mean.dtype)
        codes = mean + (log_variance / 2).exp() * noise
        latents = torch.cat([codes, self.options.latents(draw).to(mean.dtype)])
        return Compared(batch.images, self.players["generator"](latents.to(batch.images.dtype)))

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.kept is not None, "the generator's turn comes after the critic's"
        compared, self.kept = self.kept, None
        fake, real = compared.fake, compared.real
        assert isinstance(fake, Tensor)
        assert isinstance(real, Tensor)
        critic: FeatureCritic = self.critic  # type: ignore[assignment]
        generator, encoder = (list(self.players[name].parameters()) for name in self.movers)
        with frozen(critic):
            with torch.no_grad():
                at_real = wide(critic.features(real))
            at_fake = critic.features(fake)
            likeness = (at_real - wide(at_fake[: len(real)])).square().sum(1).mean() / 2
            loss = self.loss.generator(fake.new_zeros(()), wide(critic.verdict(at_fake)))
            of_encoder = self.options.prior * self.divergence + likeness
            torch.autograd.backward(of_encoder, inputs=encoder, retain_graph=True)
            torch.autograd.backward(self.options.similarity * likeness + loss, inputs=generator)
        return {"loss": loss.detach(), "likeness": likeness.detach(), "divergence": self.divergence.detach()}


class FeatureCritic(nn.Module):
    """x [N, C, S, S] -> logits [N], by features [N, F] and a linear layer."""

    def __init__(self, network: nn.Module, features: int) -> None:
        super().__init__()
        self.network = network
        self.to_logit = nn.Linear(features, 1)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = leaky_relu(self.network(x).view(len(x), -1), 0.2)
        return features

    def verdict(self, features: Tensor) -> Tensor:
        logits: Tensor = self.to_logit(features)
        return logits.flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.verdict(self.features(x))
