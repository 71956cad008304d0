"""Adversarial systems, one per file: their options, players and turns (fastgan.contract.System).

play has what they share: options, the critic's and the generator's turn.
"""

from fastgan.gans.conditional import ConditionalGAN
from fastgan.gans.unconditional import UnconditionalGAN

__all__ = ["ConditionalGAN", "UnconditionalGAN"]
