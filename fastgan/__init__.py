"""fastgan: a GAN training engine with custom kernels in its hot paths.

fastgan train --data DIR --out RUN          the command line (fastgan.cli)
fastgan.penalty.critic_backward(...)        loss and gradient penalties of any critic
fastgan.losses                              adversarial losses
"""

from fastgan._version import __version__

__all__ = ["__version__"]
