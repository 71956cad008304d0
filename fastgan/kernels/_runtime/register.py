"""Registration of ops with torch, so that torch.compile, fake tensors and the dispatcher know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY: Any = torch.library.Library("fastgan", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Makes `run` the op torch.ops.fastgan.<name in the schema> on the CPU and on CUDA devices.

    `run` is called with CPU tensors only, or with at least one CUDA tensor. What it writes to is marked in the schema,
    as in "scale_(Tensor(a!) x, float by) -> ()". `fake` is the same without numbers: new tensors of the right shapes.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CPU")
    _LIBRARY.impl(name, run, "CUDA")
    torch.library.register_fake(f"fastgan::{name}", fake, lib=_LIBRARY)
