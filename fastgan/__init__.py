"""fastgan: a GAN training engine with custom kernels in its hot paths.

fastgan train --data DIR --out RUN          the command line (fastgan.cli)
fastgan.penalty.critic_backward(...)        loss and gradient penalties of any critic
fastgan.losses                              adversarial losses
fastgan.Generator.from_pretrained(DIR)      pictures from what `fastgan export` wrote
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastgan._version import __version__

if TYPE_CHECKING:
    from fastgan.generator import Generator

__all__ = ["Generator", "__version__", "losses", "penalty"]


def __getattr__(name: str) -> Any:
    """`fastgan.penalty`, `.losses` and `.Generator` after `import fastgan`, loaded when they are first asked for."""
    if name in ("losses", "penalty"):
        return import_module(f"fastgan.{name}")
    if name == "Generator":
        return import_module("fastgan.generator").Generator
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
