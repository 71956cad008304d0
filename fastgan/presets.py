"""Presets: complete configurations of real objects, one per row of the README's table."""

from __future__ import annotations

from typing import Any

from fastgan.augment import Augment
from fastgan.contract import System
from fastgan.data import DataOptions
from fastgan.evaluation import Evaluation
from fastgan.gans import (
    VAEGAN,
    AuxiliaryGAN,
    BoundaryEquilibriumGAN,
    ConditionalGAN,
    InferenceGAN,
    MixtureGAN,
    StyleBasedGAN,
    UnconditionalGAN,
)
from fastgan.image_presets import IMAGE_ROWS
from fastgan.models import DCGAN, R3GAN, Dense, ResNet, StyleGAN2
from fastgan.optim import Averaging, Optimizer
from fastgan.options import Config, Output
from fastgan.schedule import Schedule

DEFAULT_PRESET = "dcgan-64"


def _both(**options: object) -> dict[str, Optimizer]:
    """The same optimiser for generator and critic."""
    optimizer = Optimizer(**options)  # type: ignore[arg-type]
    return {"generator": optimizer, "critic": optimizer}


def _r3gan(size: int, *, gamma: float, kimg: float, batch: int, halflife_kimg: float, augment_p: float) -> Config:
    """R3GAN (Huang et al. 2024, arXiv:2501.05441, table 9): relativistic pairs, R1 + R2, burn-in of 20 Mimg.

    The burn-in is a fraction of the run: another --kimg stretches it. The paper's augmentation, with probabilities
    that rise from 0 to `augment_p` over the burn-in, is `--set system.augment.kind=adaptive`.
    """
    burn_in = 20_000 / kimg
    gammas = Schedule(gamma, gamma / 10, finish=burn_in)
    augment = Augment(p=Schedule(0.0, augment_p, finish=burn_in), target=0.0, color=0.5, cutout=1.0)
    return Config(
        preset=f"r3gan-{size}",
        data=DataOptions(path="", size=size, mirror=True),
        system=UnconditionalGAN(R3GAN(), latent=64, loss="relativistic", r1=gammas, r2=gammas, augment=augment),
        optim=_both(lr=Schedule(2e-4, 5e-5, finish=burn_in), beta1=0.0, beta2=Schedule(0.9, 0.99, finish=burn_in)),
        averaging=Averaging(halflife_kimg=halflife_kimg),
        output=Output(grid_kimg=200, checkpoint_kimg=200),
        kimg=kimg,
        batch=batch,
    )


def _digits(
    preset: str, system: System, *, kimg: float = 280, lr: float = 1e-3, others: tuple[str, ...] = ()
) -> Config:
    """A start without data: 1,797 handwritten digits, minutes on one CPU core. others: players but the usual two."""
    optimizer = Optimizer(lr=Schedule(lr, 0.0, begin=0.6), beta1=0.0, beta2=0.99)
    return Config(
        preset=preset,
        data=DataOptions(path="digits", size=32, channels=1),
        system=system,
        optim=dict.fromkeys(("generator", "critic", *others), optimizer),
        averaging=Averaging(halflife_kimg=20.0, rampup=0.1),
        output=Output(tick_seconds=5, grid_kimg=70, checkpoint_kimg=70),
        evaluation=Evaluation(features="digits"),
        kimg=kimg,
        batch=64,
        threads=1,
        channels_last=False,
    )


_FADING = Schedule(3.0, 0.3, finish=0.6)  # gamma of R1 and R2 on digits
_DIGITS: Any = {"latent": 64, "loss": "relativistic", "r1": _FADING, "r2": _FADING, "penalty_every": 4}


def _stylegan2(size: int, *, width: int, gamma: float, batch: int, kimg: float) -> Config:
    """StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, configuration F and appendix B), Adam as for lazy penalties."""
    adam = Optimizer(lr=2.5e-3, beta1=0.0, beta2=0.99)
    system = StyleBasedGAN(StyleGAN2(width, width), r1=gamma)
    return Config(
        preset=f"stylegan2-{size}",
        data=DataOptions(path="", size=size, mirror=True),
        system=system,
        optim={"generator": adam.lazy(system.path_every), "critic": adam.lazy(system.r1_every)},
        averaging=Averaging(halflife_kimg=10.0),
        output=Output(grid_kimg=200, checkpoint_kimg=200),
        kimg=kimg,
        batch=batch,
    )


_DIGIT_ADAM = Optimizer(lr=Schedule(2.5e-3, 0.0, begin=0.6), beta1=0.0, beta2=0.99)

_ROWS = (
    _digits("digits", UnconditionalGAN(Dense(), **_DIGITS)),
    _digits("digits-conditional", ConditionalGAN(Dense(), **_DIGITS), kimg=140),
    _digits("digits-auxiliary", AuxiliaryGAN(Dense(), **_DIGITS), kimg=140),
    _digits("digits-bigan", InferenceGAN(Dense(), **_DIGITS | {"latent": 32}), others=("encoder",)),
    _digits("digits-ali", InferenceGAN(Dense(), stochastic=True, **_DIGITS | {"latent": 32}), others=("encoder",)),
    _digits("digits-mixture", MixtureGAN(Dense(), heads=8, diversity=0.1, **_DIGITS), kimg=140),
    _digits(
        "digits-vae-gan",
        VAEGAN(Dense(), latent=32, r1=_FADING, penalty_every=4, prior=0.05),
        kimg=140,
        others=("encoder",),
    ),
    _digits("digits-began", BoundaryEquilibriumGAN(Dense(), latent=32, code=32, gamma=0.7, rate=0.01), kimg=140),
    # Radford et al. 2016 (arXiv:1511.06434): batch normalisation in both networks, no penalty.
    Config(
        preset="dcgan-64",
        data=DataOptions(path="", size=64),
        system=UnconditionalGAN(DCGAN(critic_norm="batch"), latent=100, loss="non_saturating"),
        optim=_both(lr=2e-4, beta1=0.5, beta2=0.999),
        kimg=2000,
        batch=128,
    ),
    # Gulrajani et al. 2017 (arXiv:1704.00028): five critic steps, lambda 10, no batch normalisation in the critic.
    Config(
        preset="wgan-gp-64",
        data=DataOptions(path="", size=64),
        system=UnconditionalGAN(
            DCGAN(critic_norm="none"), latent=128, loss="wasserstein", wgan_gp=10.0, critic_steps=5
        ),
        optim=_both(lr=1e-4, beta1=0.0, beta2=0.9),
        kimg=10000,
        batch=64,
    ),
    # Miyato et al. 2018 (arXiv:1802.05957): spectral normalisation, hinge loss, learning rate to zero.
    Config(
        preset="sngan-32",
        data=DataOptions(path="", size=32),
        system=UnconditionalGAN(ResNet(), latent=128, loss="hinge", critic_steps=5),
        optim=_both(lr=Schedule(2e-4, 0.0, shape="linear"), beta1=0.0, beta2=0.9),
        kimg=32000,
        batch=64,
    ),
    # Miyato & Koyama 2018 (arXiv:1802.05637): the same with labels by projection, for folders of classes.
    Config(
        preset="projection-32",
        data=DataOptions(path="", size=32),
        system=ConditionalGAN(ResNet(), latent=128, loss="hinge", critic_steps=5),
        optim=_both(lr=Schedule(2e-4, 0.0, shape="linear"), beta1=0.0, beta2=0.9),
        kimg=32000,
        batch=64,
    ),
    # Mirza & Osindero 2014 (arXiv:1411.1784), labels beside z and beside the colours, in the networks of DCGAN.
    Config(
        preset="conditional-64",
        data=DataOptions(path="", size=64),
        system=ConditionalGAN(DCGAN(critic_norm="none"), latent=100, labels="concatenation", r1=1.0, penalty_every=4),
        optim=_both(lr=2e-4, beta1=0.5, beta2=0.99),
        kimg=2000,
        batch=64,
    ),
    _r3gan(32, gamma=0.05, kimg=250_000, batch=512, halflife_kimg=5000, augment_p=0.55),
    _r3gan(64, gamma=2.0, kimg=100_000, batch=256, halflife_kimg=500, augment_p=0.3),
    _r3gan(256, gamma=150.0, kimg=200_000, batch=256, halflife_kimg=500, augment_p=0.3),
    # StyleGAN2 without any data: narrow networks, some ten minutes on one CPU core.
    Config(
        preset="stylegan2-digits",
        data=DataOptions(path="digits", size=32, channels=1),
        system=StyleBasedGAN(StyleGAN2(8, 8, max_width=64, style=64, mapping_layers=4), latent=64, r1=1.0),
        optim={"generator": _DIGIT_ADAM.lazy(8), "critic": _DIGIT_ADAM.lazy(16)},
        averaging=Averaging(halflife_kimg=5.0),
        output=Output(tick_seconds=5, grid_kimg=20, checkpoint_kimg=20),
        evaluation=Evaluation(features="digits"),
        kimg=120,
        batch=32,
        threads=1,
    ),
    # gamma = 0.0002 pixels / batch, the rule of thumb of Karras et al. 2020b (arXiv:2006.06676, appendix C)
    _stylegan2(64, width=256, gamma=0.0256, batch=32, kimg=10_000),
    _stylegan2(256, width=64, gamma=0.41, batch=32, kimg=25_000),
)

PRESETS = {config.preset: config for config in (*_ROWS, *IMAGE_ROWS)}
