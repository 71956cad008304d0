"""What a metric returns: its value, and every convention that a comparison with published numbers depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Values = Mapping[str, float | tuple[float, ...]]


@dataclass(frozen=True)
class Result:
    """`float(result)` is its value.

    name:     of the metric, such as "fid"
    value:    the number that stands for it
    protocol: a frozen dataclass of the metric's conventions: sizes, seeds, `<` or `<=`, ddof, ...
    values:   further numbers, such as a standard deviation, and the points of a curve
    n_real, n_fake: samples that were used; 0 where there is no such side
    warnings: why the value may mislead, one sentence each
    """

    name: str
    value: float
    protocol: Any
    values: Values = field(default_factory=dict)
    n_real: int = 0
    n_fake: int = 0
    warnings: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers, strings, lists and dictionaries; None for NaN and infinity, which it does not have."""
        out = asdict(self)
        out["warnings"] = list(self.warnings)
        out["value"] = finite(self.value)
        out["values"] = {
            key: [finite(x) for x in v] if isinstance(v, tuple) else finite(v) for key, v in self.values.items()
        }
        return out


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
