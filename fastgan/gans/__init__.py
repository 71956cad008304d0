"""Adversarial systems, one per file: their options, players and turns (fastgan.contract.System)."""

from fastgan.gans.cycle import CycleGAN
from fastgan.gans.inpainting import Inpainting
from fastgan.gans.super_resolution import SuperResolution
from fastgan.gans.translation import Translation
from fastgan.gans.unconditional import UnconditionalGAN

__all__ = ["CycleGAN", "Inpainting", "SuperResolution", "Translation", "UnconditionalGAN"]
