"""fastgan: a GAN training engine with custom kernels in its hot paths.

fastgan train --data DIR --out RUN          the command line (fastgan.cli)
fastgan.penalty.critic_backward(...)        loss and gradient penalties of any critic
fastgan.losses                              adversarial losses
fastgan.Generator.from_pretrained(DIR)      pictures from what `fastgan export` wrote
fastgan.Translator.from_pretrained(DIR)     the same of a network from images to images
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastgan._version import __version__

if TYPE_CHECKING:
    from fastgan.generator import Generator
    from fastgan.translator import Translator

__all__ = ["Generator", "Translator", "__version__", "losses", "penalty"]


def __getattr__(name: str) -> Any:
    """`fastgan.penalty`, `.losses`, `.Generator`, `.Translator` after `import fastgan`, loaded when first asked for."""
    if name in ("losses", "penalty"):
        return import_module(f"fastgan.{name}")
    if name == "Generator":
        return import_module("fastgan.generator").Generator
    if name == "Translator":
        return import_module("fastgan.translator").Translator
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
