"""Configurations: presets, TOML files and `--set a.b=value` overrides of fastgan.options.Config.

A preset is a complete Config of real objects. A TOML file or an override changes plain values in it; which
classes they sit in is the preset's alone, so that a file cannot name code. Unknown keys are errors that suggest
the nearest one; values are checked against the annotated type of their field.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastgan.errors import FastganError, suggest
from fastgan.options import Config, to_mapping, to_toml
from fastgan.presets import DEFAULT_PRESET, PRESETS
from fastgan.schedule import Schedule

__all__ = ["DEFAULT_PRESET", "PRESETS", "Config", "read_toml", "resolve", "to_mapping", "to_toml"]


def resolve(
    preset: str | None = None,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> Config:
    """The Config of a command: preset, then the TOML file, then flags ({"data.path": ...}), then `a.b=value`s."""
    mapping = read_toml(file) if file else {}
    name = preset or mapping.pop("preset", None) or DEFAULT_PRESET
    mapping.pop("preset", None)
    for key, value in [*(flags or {}).items(), *map(parse_set, sets)]:
        _insert(mapping, key, value)
    return from_mapping(name, mapping)


def _insert(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key of a nested mapping, which `_merge` checks as a whole afterwards."""
    *groups, last = key.split(".")
    for group in groups:
        if not isinstance(mapping.get(group), dict):
            mapping[group] = {}
        mapping = mapping[group]
    mapping[last] = value


def from_mapping(preset: object, mapping: Mapping[str, Any]) -> Config:
    """The preset's Config with the values of a nested mapping in place of its own."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise FastganError(f"preset {preset!r} is unknown{suggest(str(preset), PRESETS)}")
    config: Config = _merge(PRESETS[preset], mapping, "")
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The nested mapping in a TOML file, or FastganError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FastganError(f"config file {path} does not exist; check --config") from None
    except OSError as error:
        raise FastganError(f"config file {path} cannot be read: {error.strerror}; check --config") from None
    except RecursionError:
        raise FastganError(f"config file {path} is nested too deeply; start from a run's config.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FastganError(
            f"config file {path} is not TOML: {error}; mend it, or start from a run's config.toml"
        ) from None


def parse_set(text: str) -> tuple[str, Any]:
    """`a.b=value` as (key, value); the value is read as TOML where it is TOML, else as plain text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise FastganError(f"--set {text!r} is not of the form key=value, such as --set optim.critic.lr=1e-4")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def override(config: Config, key: str, value: Any) -> Config:
    """The config with the value at the dotted `key` replaced."""
    changes: dict[str, Any] = {}
    _insert(changes, key, value)
    changed: Config = _merge(config, changes, "")
    return changed


def _merge(base: Any, changes: Mapping[str, Any], where: str) -> Any:
    """`base` (a dataclass object or a dict of them) with nested `changes`; `where` is its dotted name."""
    if isinstance(base, dict):
        options: dict[str, Any] = dict.fromkeys(base)
        current = base
    else:
        hints = typing.get_type_hints(type(base))
        options = {f.name: hints[f.name] for f in dataclasses.fields(base) if f.name != "preset"}
        current = {name: getattr(base, name) for name in options}
    updates = {}
    for key, value in changes.items():
        name = f"{where}{key}"
        if key not in options:
            raise FastganError(f"config key {name!r} is unknown{suggest(key, options)}")
        old = current[key]
        if isinstance(old, dict) or (dataclasses.is_dataclass(old) and not isinstance(old, Schedule)):
            if not isinstance(value, Mapping):
                raise FastganError(
                    f"config key {name!r} is a group, got {value!r}; set one of its keys, such as "
                    f"{name}.{_first_key(old)}"
                )
            updates[key] = _merge(old, value, f"{name}.")
        else:
            updates[key] = _typed(value, options[key], name)
    if isinstance(base, dict):
        return {**base, **updates}
    try:
        return dataclasses.replace(base, **updates)
    except FastganError as error:
        raise FastganError(f"{where.rstrip('.')}: {error}" if where else str(error)) from None


def _first_key(group: Any) -> str:
    return next(iter(group)) if isinstance(group, dict) else dataclasses.fields(group)[0].name


def _typed(value: Any, kind: Any, name: str) -> Any:
    """`value` as the annotated type `kind`, or FastganError. Integers pass as floats; mappings as schedules."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for one in kinds:
        origin = typing.get_origin(one) or one
        if origin is Schedule and isinstance(value, Mapping):
            return _merge_schedule(value, name)
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                break
            return float(value)
        if origin is tuple and isinstance(value, (list, tuple)):
            item = typing.get_args(one)[0]
            return tuple(_typed(v, item, f"{name}[{i}]") for i, v in enumerate(value))
        if isinstance(origin, type) and isinstance(value, origin) and (origin is bool) == isinstance(value, bool):
            return value
        if origin is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)  # a folder may be called 2024
    expected = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise FastganError(f"config key {name!r} takes a value of type {expected}, got {value!r}")


def _merge_schedule(value: Mapping[str, Any], name: str) -> Schedule:
    hints = typing.get_type_hints(Schedule)
    for key in value:
        if key not in hints:
            raise FastganError(f"config key {name + '.' + key!r} is unknown{suggest(key, hints)}")
    missing = [key for key in ("start", "end") if key not in value]
    if missing:
        raise FastganError(f"config key {name!r}: a schedule needs {' and '.join(missing)}")
    try:
        return Schedule(**{key: _typed(v, hints[key], f"{name}.{key}") for key, v in value.items()})
    except FastganError as error:
        raise FastganError(str(error) if name in str(error) else f"{name}: {error}") from None
