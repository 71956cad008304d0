"""Adversarial systems, one per file: their options, players and turns (fastgan.contract.System)."""

from fastgan.gans.stylegan2 import StyleBasedGAN
from fastgan.gans.unconditional import UnconditionalGAN

__all__ = ["StyleBasedGAN", "UnconditionalGAN"]
