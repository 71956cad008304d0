"""What a critic may return."""

from __future__ import annotations

from torch import Tensor

from fastgan.errors import UnsupportedCritic


def check_logits(logits: object, count: int) -> None:
    """UnsupportedCritic unless `logits` can be those of `count` samples."""
    if not isinstance(logits, Tensor):
        raise UnsupportedCritic(f"critic must return one tensor of logits, got {type(logits).__name__}")
    if logits.ndim == 0 or len(logits) != count or not logits.is_floating_point():
        raise UnsupportedCritic(
            f"critic must return floating-point logits [{count}], [{count}, 1] or [{count}, ...] for "
            f"{count} samples, got {logits.dtype} {list(logits.shape)}"
        )
