"""fastgan: a GAN training engine with custom kernels in its hot paths.

fastgan train --data DIR --out RUN          the command line (fastgan.cli)
fastgan.penalty.critic_backward(...)        loss and gradient penalties of any critic
fastgan.losses                              adversarial losses
"""

from importlib import import_module
from types import ModuleType

from fastgan._version import __version__

__all__ = ["__version__", "losses", "penalty"]


def __getattr__(name: str) -> ModuleType:
    """`fastgan.penalty` and `fastgan.losses` after `import fastgan`, loaded when they are first asked for."""
    if name in ("losses", "penalty"):
        return import_module(f"fastgan.{name}")
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
