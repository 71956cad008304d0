"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958): styles, lazy R1 and lazy path length regularisation.

Players: a generator of a mapping f and a synthesis network g, G(z) = g(f(z)), and a critic D(x). A step is

    critic     the gradient of  loss.critic(D(x), D(G(z)))
    r1         every r1_every-th step, an update of its own: r1_every gamma/2 mean |grad D(x)|^2 on the same reals
    generator  the gradient of  loss.generator(D(x), D(G(z))), on the fakes of the critic's turn
    path       every path_every-th step, an update of its own, on a part of the batch (equation 4 and appendix B):

        path_every weight mean_n (|J_n^T y_n| - a)^2,    J_n = dg(w_n)/dw,  y ~ N(0, 1) / sqrt(pixels)

where |.|^2 is the mean over the layers' styles of a sample, and a the moving average of the lengths. J^T y is the
gradient of <g(w), y>, so that the penalty differentiates twice through the generator.

A lazy turn is one more update in every k-th step. For the same speed the paper takes Adam with c = k/(k+1) of the
learning rate and beta^c: `Optimizer.lazy(k)` of fastgan.optim, which the presets use.

Style mixing (Karras et al. 2019, arXiv:1812.04948, section 3.1): a share of the samples has the styles of a second
latent from a random layer on. Truncation (the same, appendix B): styles are moved towards their moving average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from fastgan.augment import Augment, Augmenter
from fastgan.contract import Batch, Draw, ImageShape, Turn
from fastgan.dist import group_mean, sum_over_ranks
from fastgan.errors import FastganError, suggest
from fastgan.gans.latents import draw_latents, way
from fastgan.gans.play import augment_statistics, frozen, wide
from fastgan.losses import LOSSES
from fastgan.models.stylegan2 import Generator, StyleGAN2
from fastgan.penalty import critic_backward
from fastgan.schedule import Scheduled, lowest

PATH_DECAY = 0.99  # of the moving average a of path lengths
STYLE_DECAY = 0.998  # of the moving average of styles


@dataclass(frozen=True)
class StyleBasedGAN:
    """Options of StyleGAN2.

    networks:     the two networks (fastgan.models.StyleGAN2)
    latent:       length of z
    loss:         a key of fastgan.losses.LOSSES
    r1, r1_every: gamma in gamma/2 * mean |grad D|^2 on reals, a number or schedule; in every so manieth step
    path, path_every: weight of the path length penalty, and in every so manieth step
    path_share:   the path length penalty takes one in so many samples of a batch
    style_mixing: share of the samples with styles of two latents
    truncation:   of the pictures: 1 for styles as they are, 0 for their mean
    augment:      augmentation of what the critic sees, reals and fakes alike (fastgan.augment)
    """

    networks: StyleGAN2 = field(default_factory=StyleGAN2)
    latent: int = 512
    loss: str = "non_saturating"
    r1: Scheduled = 10.0
    r1_every: int = 16
    path: Scheduled = 2.0
    path_every: int = 8
    path_share: int = 2
    style_mixing: float = 0.9
    truncation: float = 1.0
    augment: Augment = field(default_factory=Augment)

    averaged = ("generator",)
    latent_distribution = "normal"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise FastganError(f"loss {self.loss!r} is unknown{suggest(self.loss, LOSSES)}")
        for name in ("r1", "path"):
            if not lowest(getattr(self, name)) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("latent", "r1_every", "path_every", "path_share"):
            if getattr(self, name) < 1:
                raise FastganError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.style_mixing <= 1:
            raise FastganError(f"style_mixing must be from 0 to 1, got {self.style_mixing}")
        if not -2 <= self.truncation <= 2:
            raise FastganError(f"truncation must be from -2 to 2 (1: none, 0: the mean), got {self.truncation}")

    def schedules(self) -> dict[str, Scheduled]:
        penalties = {name: getattr(self, name) for name in ("r1", "path") if getattr(self, name) != 0.0}
        return penalties | self.augment.schedules()

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        return self.augment.memory(device)

    def players(self, image: ImageShape) -> dict[str, nn.Module]:
        return {
            "generator": self.networks.generator(image, self.latent),
            "critic": self.networks.critic(image),
        }

    def turns(self, players: Mapping[str, nn.Module], scalars: Mapping[str, Tensor]) -> tuple[Turn, ...]:
        play = _Play(self, cast(Generator, players["generator"]), players["critic"], scalars)
        turns = [Turn("critic", ("critic",), play.critic_turn)]
        if "r1" in scalars:
            turns.append(Turn("r1", ("critic",), play.r1_turn, every=self.r1_every, fresh=False))
        turns.append(Turn("generator", ("generator",), play.generator_turn, fresh=False))
        if "path" in scalars:
            turns.append(
                Turn("path", ("generator",), play.path_turn, every=self.path_every, fresh=False, average=False)
            )
        return tuple(turns)

    def latents(self, draw: Draw) -> Tensor:
        return draw_latents(self.latent_distribution, self.latent, draw)

    def way(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return way(self.latent_distribution, a, b, t)

    def sample(self, players: Mapping[str, nn.Module], latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.from_styles(players, self.styles(players, latents))

    def truncated(self, truncation: float) -> StyleBasedGAN:
        return replace(self, truncation=truncation)

    def styles(self, players: Mapping[str, nn.Module], latents: Tensor) -> Tensor:
        generator = cast(Generator, players["generator"])
        return generator.truncated(generator.mapping(latents), self.truncation)

    def from_styles(self, players: Mapping[str, nn.Module], styles: Tensor) -> Tensor:
        images: Tensor = cast(Generator, players["generator"]).synthesis(styles)
        return images

    def generate(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> Tensor:
        return self.sample(players, self.latents(draw).to(batch.images.dtype))

    def pictures(self, players: Mapping[str, nn.Module], batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return (self.generate(players, batch, draw),)


class _Play:
    """The turns of one game: the players, the coefficients and the fakes that two turns share."""

    def __init__(
        self, options: StyleBasedGAN, generator: Generator, critic: nn.Module, scalars: Mapping[str, Tensor]
    ) -> None:
        self.options, self.generator, self.critic, self.scalars = options, generator, critic, scalars
        self.loss, self.augment = LOSSES[options.loss], Augmenter(options.augment, scalars, sum_over_ranks)
        # With the minibatch standard deviation the sweep takes as long as autograd does.
        self.method = "autograd" if options.networks.minibatch_std else "auto"
        self.fake: Tensor | None = None

    def draw_styles(self, draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Styles of one latent per sample [N, style], and with style mixing [N, styles of the layers, style]."""
        o, layers = self.options, self.generator.synthesis.styles
        if not o.style_mixing:
            w: Tensor = self.generator.mapping(o.latents(draw).to(dtype))
            return w, w[:, None].expand(-1, layers, -1)
        both = torch.cat([o.latents(draw), o.latents(draw)]).to(dtype)
        w, second = self.generator.mapping(both).chunk(2)
        mixed = draw.uniform() < o.style_mixing
        first_of_second = torch.where(mixed, 1 + draw.integers(layers - 1), layers)
        number = torch.arange(layers, device=w.device)
        of_second = (number >= first_of_second[:, None])[:, :, None]
        return w, torch.where(of_second, second[:, None], w[:, None])

    def critic_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        w, styles = self.draw_styles(draw, batch.images.dtype)
        with torch.no_grad():
            mean = group_mean(w.detach().mean(0)).to(self.generator.style_mean.dtype)
            self.generator.style_mean.lerp_(mean, 1 - STYLE_DECAY)
        self.fake = self.generator.synthesis(styles, draw.normal(self.generator.synthesis.noise_numbers))
        real, fake = self.augment(batch.images, draw), self.augment(self.fake.detach(), draw)
        result = critic_backward(self.critic, real, fake, self.loss.critic, method=self.method)
        self.augment.observe(result.real_logits)
        return {
            "loss": result.loss,
            "real_logits": result.real_logits.mean(),
            "fake_logits": result.fake_logits.mean(),
            **augment_statistics(self.augment),
        }

    def r1_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """R1 alone: autograd's double backward. With the loss of the fakes the shared sweep would take longer."""
        x = self.augment(batch.images, draw).detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)
        squares = slope.square().sum((1, 2, 3)).mean()
        weight = self.scalars["r1"] * (self.options.r1_every / 2)
        torch.autograd.backward(squares * weight, inputs=[p for p in self.critic.parameters() if p.requires_grad])
        return {"r1": squares.detach()}

    def generator_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        assert self.fake is not None, "the generator's turn comes after the critic's"
        fake, self.fake = self.fake, None
        with frozen(self.critic):
            with torch.set_grad_enabled(False):
                compares = self.loss.generator_compares
                real = self.critic(self.augment(batch.images, draw)) if compares else fake.new_zeros(())
            loss = self.loss.generator(wide(real), wide(self.critic(self.augment(fake, draw))))
            loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach()}

    def path_turn(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        share = self.options.path_share  # every share-th, so that ranks together take those that one rank would
        some = Draw(draw.seed, batch.index[::share], draw.stream)
        synthesis = self.generator.synthesis
        _, styles = self.draw_styles(some, batch.images.dtype)
        images = synthesis(styles, some.normal(synthesis.noise_numbers))
        probe = some.normal(*images.shape[1:]).to(images.dtype)
        lengths = path_lengths(images, styles, probe)
        mean = self.generator.path_mean
        with torch.no_grad():
            mean.lerp_(group_mean(lengths.detach().mean()).to(mean.dtype), 1 - PATH_DECAY)
        penalty = (lengths - mean).square().mean()
        weight = self.scalars["path"] * self.options.path_every
        trained = [p for p in self.generator.parameters() if p.requires_grad]
        torch.autograd.backward(penalty * weight, inputs=trained)
        return {"length": lengths.detach().mean(), "penalty": penalty.detach()}


def path_lengths(images: Tensor, styles: Tensor, probe: Tensor) -> Tensor:
    """|J^T y| of each sample, [N], differentiable: the root of the squares' sum over a style, meant over the layers.

    images [N, C, H, W] of styles [N, layers, style]; probe: standard normal, like images. Here y = probe / sqrt(H W).
    """
    weighted = (images * probe).sum() / math.sqrt(images.shape[2] * images.shape[3])
    (slope,) = torch.autograd.grad(weighted, styles, create_graph=True)
    return slope.square().sum(2).mean(1).sqrt()
