"""Adversarial systems, one per file: their options, players and turns (fastgan.contract.System).

play has what those from latents share: options, the critic's and the generator's turn.
"""

from fastgan.gans.ali import InferenceGAN
from fastgan.gans.auxiliary import AuxiliaryGAN
from fastgan.gans.boundary_equilibrium import BoundaryEquilibriumGAN
from fastgan.gans.conditional import ConditionalGAN
from fastgan.gans.cycle import CycleGAN
from fastgan.gans.inpainting import Inpainting
from fastgan.gans.mixture import MixtureGAN
from fastgan.gans.stylegan2 import StyleBasedGAN
from fastgan.gans.super_resolution import SuperResolution
from fastgan.gans.translation import Translation
from fastgan.gans.unconditional import UnconditionalGAN
from fastgan.gans.vae_gan import VAEGAN

__all__ = [
    "VAEGAN",
    "AuxiliaryGAN",
    "BoundaryEquilibriumGAN",
    "ConditionalGAN",
    "CycleGAN",
    "InferenceGAN",
    "Inpainting",
    "MixtureGAN",
    "StyleBasedGAN",
    "SuperResolution",
    "Translation",
    "UnconditionalGAN",
]
