"""What older fastgans wrote, as this one reads it: a step per schema version.

The schema counts up when what `state` of a checkpoint means changes, or when options come to a system whose absence
would look like another run. Files of tensors keep their names; a step may not need more than `state`.

    1  the first
    2  systems have options of augmentation; checkpoints from before had none
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 2

State = dict[str, Any]


def _augmentation(state: State) -> State:
    """1 -> 2. The option that means none, where a system has none of its own."""
    system = _group(state, "config", "system")
    system.setdefault("augment", {"kind": "none"})
    return state


def _group(state: State, *keys: str) -> State:
    """The nested group at `keys`; an empty one, that belongs to nothing, where there is none."""
    group: Any = state
    for key in keys:
        group = group.get(key) if isinstance(group, dict) else None
    return group if isinstance(group, dict) else {}


STEPS: dict[int, Callable[[State], State]] = {1: _augmentation}


def migrated(state: Mapping[str, Any], schema: int) -> State:
    """`state` of a checkpoint of `schema`, as one of SCHEMA."""
    made = copy.deepcopy(dict(state))
    for version in range(schema, SCHEMA):
        made = STEPS[version](made)
    return made
