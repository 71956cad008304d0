"""Presets of the systems that turn images into images: docs/images-to-images.md says what each of them is for."""

from __future__ import annotations

from fastgan.data import DataOptions
from fastgan.evaluation import Evaluation
from fastgan.gans import CycleGAN, Inpainting, SuperResolution, Translation
from fastgan.models import PatchCritic, ResNetTranslator, SRCritic, SRResNet, UNet
from fastgan.optim import Averaging, Optimizer
from fastgan.options import Config, Output
from fastgan.schedule import Schedule

_SMALL = Output(tick_seconds=5, grid_kimg=0, checkpoint_kimg=0, grid_images=48)
_DIGITS = DataOptions(path="digits", size=16, channels=1)
_PUBLISHED = Optimizer(lr=2e-4, beta1=0.5, beta2=0.999)  # of pix2pix and CycleGAN


def _digits(preset: str, system: object, *, kimg: float, lr: float = 2e-3, players: tuple[str, ...]) -> Config:
    """On 16x16 digits, in minutes on one CPU core."""
    optimizer = Optimizer(lr=Schedule(lr, 0.0, begin=0.5), beta1=0.5, beta2=0.99)
    return Config(
        preset=preset,
        data=_DIGITS,
        system=system,  # type: ignore[arg-type]
        optim=dict.fromkeys(players, optimizer),
        averaging=Averaging(halflife_kimg=2.0, rampup=0.1),
        output=_SMALL,
        evaluation=Evaluation(features="digits"),
        kimg=kimg,
        batch=32,
        threads=1,
        channels_last=False,
    )


def _pix2pix(size: int, kimg: float, batch: int) -> Config:
    """Isola et al. 2017 (arXiv:1611.07004, section 6): U-Net, 70x70 patches, L1 with weight 100, dropout."""
    return Config(
        preset=f"pix2pix-{size}",
        data=DataOptions(path="", size=size, pairs="side_by_side", mirror=True),
        system=Translation(UNet(), PatchCritic()),
        optim={"generator": _PUBLISHED, "critic": _PUBLISHED},
        kimg=kimg,
        batch=batch,
    )


def _srgan(scale: int) -> Config:
    """Ledig et al. 2017 (arXiv:1609.04802, section 3.2): 96x96 crops, 16 blocks; half of the run by pixels alone, then
    against the critic. The paper's feature loss is of VGG19; here, without weights to get, of the critic itself."""
    learning = Schedule(1e-4, 1e-5, begin=0.5)
    optimizer = Optimizer(lr=learning, beta1=0.9, beta2=0.999)
    against = Schedule(0.0, 1e-3, begin=0.5, finish=0.55)
    return Config(
        preset=f"srgan-x{scale}",
        data=DataOptions(path="", size=96, mirror=True),
        system=SuperResolution(SRResNet(norm="none"), SRCritic(), scale=scale, adversarial=against),
        optim={"generator": optimizer, "critic": optimizer},
        kimg=3200,
        batch=16,
    )


IMAGE_ROWS = (
    _digits(
        "pix2pix-digits",
        Translation(UNet(width=16, depth=3, dropout=0.0), PatchCritic(width=16, layers=2), source="noise"),
        kimg=25,
        players=("generator", "critic"),
    ),
    _pix2pix(64, kimg=2000, batch=16),
    _pix2pix(256, kimg=200, batch=4),
    _digits(
        "srgan-digits",
        SuperResolution(
            SRResNet(width=16, blocks=2, kernel=5, norm="none"),
            SRCritic(width=16, halvings=2, hidden=64),
            adversarial=Schedule(0.0, 1e-2, begin=0.5, finish=0.6),
        ),
        kimg=25,
        players=("generator", "critic"),
    ),
    _srgan(2),
    _srgan(4),
    _digits(
        "cyclegan-digits",
        CycleGAN(
            ResNetTranslator(width=12, blocks=2, halvings=1, norm="batch"),
            PatchCritic(width=16, layers=2, norm="instance"),
            source="inverted",
            identity=0.0,
        ),
        kimg=12,
        players=("generator", "back", "critic", "critic_back"),
    ),
    # Zhu et al. 2017 (arXiv:1703.10593, sections 4 and 7.2): 6 blocks at 128 pixels, then less and less.
    Config(
        preset="cyclegan-128",
        data=DataOptions(path="", size=128, pairs="unpaired", mirror=True),
        system=CycleGAN(),
        optim=dict.fromkeys(
            ("generator", "back", "critic", "critic_back"),
            Optimizer(lr=Schedule(2e-4, 0.0, begin=0.5), beta1=0.5, beta2=0.999),
        ),
        kimg=240,
        batch=1,
    ),
    _digits(
        "inpaint-digits",
        Inpainting(
            UNet(width=16, depth=3, dropout=0.0, from_zero=True),
            PatchCritic(width=16, layers=1, norm="none"),
            smallest=0.3,
        ),
        kimg=15,
        players=("generator", "critic"),
    ),
    Config(
        preset="inpaint-64",
        data=DataOptions(path="", size=64, mirror=True),
        system=Inpainting(critic=PatchCritic(layers=2, norm="instance")),
        optim={"generator": _PUBLISHED, "critic": _PUBLISHED},
        kimg=2000,
        batch=16,
    ),
)
