"""Checkpoints that survive a crash at any moment, and are never trusted unread.

A checkpoint is a folder of one safetensors file per group of tensors and one state.json:

    checkpoints/step-00002000/generator.safetensors  ...  state.json
    checkpoints/latest.json                           names the newest

Saving writes everything under a hidden name, waits for the device, reads it back against its hashes, renames
it, and only then replaces latest.json; older checkpoints go last. So at every moment a whole one is there.
state.json holds size and SHA-256 of every file, and the JSON files are sealed with the SHA-256 of their own
text: a bit flipped anywhere is found. There is no pickle.

Names order checkpoints as people do: by the numbers in them, `step-900` before `step-1000`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastgan._version import __version__
from fastgan.errors import FastganError
from fastgan.run.files import ADVICE, reason, replace_durable, sync_folder, write_durable
from fastgan.run.migrate import SCHEMA, migrated
from fastgan.run.snapshot import file_parts

STATE = "state.json"
LATEST = "latest.json"
_SUFFIX = ".safetensors"
HIDDEN = ".tmp-"  # a save or a removal that was under way
_PIECE = 8 << 20  # bytes that are read at a time where nothing is kept
_REPLACED = ".replaced"  # the former bearer of a name, while the new one takes its place
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of checkpoints and files: no paths, nothing hidden


@dataclass
class Checkpoint:
    """A checkpoint that has been read and verified.

    tensors: file stem -> key -> tensor, on the CPU, contiguous, in memory of its own
    state:   what was given to `save`, as JSON gives it back (tuples are lists, keys are strings)
    """

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class NewerSchema(FastganError):
    """Nothing is broken: this fastgan is too old. Falling back would throw work away."""


# ------------------------------------------------------------------------------------------------- saving


def save(
    folder: Path,
    name: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Writes the checkpoint `folder/name`, makes it the latest and leaves the `keep` newest.

    tensors: file stem -> key -> tensor of any dtype, device and strides. Tensors that share memory are each
             written in full.
    state:   anything JSON can hold
    An existing checkpoint of that name is replaced. Names newer than this one, left by a run that was since
    resumed from an earlier point, count as the oldest.

    Raises FastganError in one line where the disk is full or cannot be written; the checkpoints that were
    there are then as they were.
    """
    assert _PLAIN.fullmatch(name), f"not a checkpoint name: {name!r}"
    if keep < 1:
        raise FastganError(f"the number of checkpoints to keep must be at least 1, not {keep}")
    temporary = folder / f"{HIDDEN}{name}"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
        for leftover in folder.glob(f"{HIDDEN}*"):
            _discard(leftover)
        _write(temporary, tensors, state)
        _verify(temporary)
        _publish(temporary, folder / name)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FastganError(
            f"cannot save checkpoint {name} in {folder}: {reason(error)}; {_what_is_left(folder)}; {ADVICE}"
        ) from error
    names = _newest_first(folder, name)
    kept = [n for n in names if not n.endswith(_REPLACED)][:keep]
    for old in names:
        if old not in kept:
            _discard(folder / old)
    return folder / name


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Writes all files of a checkpoint to a new folder and waits for the device."""
    folder.mkdir()
    files = {}
    for stem, group in tensors.items():
        assert _PLAIN.fullmatch(stem), f"not a file stem: {stem!r}"
        parts, digest = file_parts(_plain(group)), hashlib.sha256()
        for part in parts:
            digest.update(part)
        files[stem + _SUFFIX] = {"bytes": sum(map(len, parts)), "sha256": digest.hexdigest()}
        write_durable(folder / (stem + _SUFFIX), *parts)
    versions = {"fastgan": __version__, "torch": torch.__version__}
    head = {"schema": SCHEMA, "versions": versions, "files": files, "state": dict(state)}
    write_durable(folder / STATE, seal(json.dumps(head, indent=1)))
    sync_folder(folder)


def _plain(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The group as the format takes it: dense on the CPU, no memory shared."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in group.items():
        dense = tensor.detach().cpu().contiguous()
        if dense.untyped_storage().data_ptr() in seen:
            dense = dense.clone()
        seen.add(dense.untyped_storage().data_ptr())
        plain[key] = dense
    return plain


def _verify(path: Path) -> None:
    """Reads a checkpoint back. Raises FastganError where the device did not keep what it was given."""
    try:
        for file, record in read_head(path)["files"].items():
            _check_file(path / file, record)
    except FastganError as error:
        raise FastganError(f"{error}, right after it was written: the disk is not to be trusted") from error


def _publish(temporary: Path, path: Path) -> None:
    """Gives a whole checkpoint its name, then makes it the latest; a crash leaves one of them to be found."""
    replaced = path.with_name(path.name + _REPLACED)
    if path.exists():  # a folder cannot be renamed onto another one
        if replaced.exists():
            _discard(replaced)
        os.rename(path, replaced)
    os.rename(temporary, path)
    sync_folder(path.parent)
    replace_durable(path.parent / LATEST, seal(json.dumps({"latest": path.name})))


def adopt(temporary: Path, path: Path) -> None:
    """Makes a checkpoint folder that came from elsewhere, whole and in the folder of `path`, the latest one.

    Raises FastganError where it is damaged, OSError where the disk is in the way.
    """
    for file, record in read_head(temporary)["files"].items():
        _check_file(temporary / file, record)
    _publish(temporary, path)


def _discard(path: Path) -> None:
    """Removes a folder; under a hidden name first, so that a crash leaves no half of a checkpoint."""
    try:
        hidden = path if path.name.startswith(HIDDEN) else path.with_name(f"{HIDDEN}{path.name}.removed")
        if hidden != path:
            os.rename(path, hidden)
        shutil.rmtree(hidden)
    except OSError as error:  # the new checkpoint is safe: not worth the run; the next save tries again
        warnings.warn(f"cannot remove {path}: {reason(error)}", stacklevel=3)


def _what_is_left(folder: Path) -> str:
    with contextlib.suppress(FastganError):
        if latest := _read_latest(folder):
            return f"the previous checkpoint {latest} is intact"
    return "there is no earlier checkpoint"


# ------------------------------------------------------------------------------------------------ loading


def load(path: Path) -> Checkpoint:
    """Reads the checkpoint folder `path`, every byte verified.

    Raises FastganError in one line that names the file and what is wrong with it: missing, cut short,
    changed, or written by a newer fastgan.
    """
    head = read_head(path)
    tensors = {
        file.removesuffix(_SUFFIX): _parse(path / file, _read_file(path / file, record))
        for file, record in head["files"].items()
    }
    return Checkpoint(path, tensors, migrated(head["state"], head["schema"]))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a single safetensors file, from a checkpoint or from elsewhere. Raises FastganError."""
    return _parse(path, _read(path))


def load_latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`; None where no run has saved one yet.

    warn: called with one line for everything that is damaged: the file, what is wrong, what is tried next
    Raises FastganError where there are checkpoints and none is whole, or a newer fastgan wrote them: to start
    from nothing in silence would lose a run.
    """
    try:
        latest = _read_latest(folder)
    except FastganError as error:
        warn(f"{error}; taking the newest checkpoint in the folder")
        latest = None
    else:
        if latest is None and _newest_first(folder, None):
            warn(f"{folder / LATEST} is missing; taking the newest checkpoint in the folder")
    names = _newest_first(folder, latest)
    if latest and latest not in names:
        names.insert(0, latest)
    for name, then in itertools.zip_longest(names, names[1:]):
        try:
            return load(folder / name)
        except NewerSchema:
            raise
        except FastganError as error:
            warn(f"{error}; " + (f"falling back to {then}" if then else "there is no earlier checkpoint"))
    if names or os.path.exists(folder / LATEST):
        raise FastganError(
            f"no checkpoint in {folder} can be read (each is named above); restore one from a copy, "
            "or start again in another folder"
        )
    return None


def _parse(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of number that torch does not have
        raise FastganError(f"{path} is not a safetensors file that torch can read: {error}") from error


def _newest_first(folder: Path, latest: str | None) -> list[str]:
    """Names of the checkpoints in `folder`: `latest`, what is older, then what is newer than `latest`."""
    try:
        names = [p.name for p in folder.iterdir() if p.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FastganError(f"cannot read the checkpoints in {folder}: {reason(error)}") from error
    return newest_first(names, latest)


def newest_first(names: Iterable[str], latest: str | None) -> list[str]:
    """Those of `names` that checkpoints can have: `latest`, what is older, then what is newer than `latest`."""
    names = [name for name in names if _PLAIN.fullmatch(name)]
    if latest is None:
        return sorted(names, key=_age, reverse=True)
    newest = _age(latest)
    return sorted(names, key=lambda name: (_age(name) <= newest, _age(name)), reverse=True)


def _age(name: str) -> tuple[list[str | int], bool]:
    """Sort key: numbers by value; a folder that is being replaced is just older than its successor."""
    stem = name.removesuffix(_REPLACED)
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", stem)], stem == name


def _read_latest(folder: Path) -> str | None:
    """The name in latest.json; None where there is no such file. Raises FastganError."""
    path = folder / LATEST
    if not os.path.exists(path):
        return None
    return latest_of(_read(path), str(path))


def latest_of(data: bytes, path: str) -> str:
    """The name in the bytes of a latest.json. Raises FastganError."""
    name = unsealed(data, path).get("latest")
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise FastganError(f"{path} is damaged: it does not name a checkpoint")
    return name


def read_head(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, its structure checked. Raises FastganError."""
    if not os.path.isdir(path):
        raise FastganError(f"checkpoint {path} is missing: expected a folder with a {STATE}")
    head = unseal(path / STATE)
    schema, versions = head.get("schema"), head.get("versions")
    if not isinstance(schema, int) or schema < 1 or not isinstance(versions, dict):
        raise FastganError(f"{path / STATE} is damaged: it is not the state of a checkpoint")
    if schema > SCHEMA:
        raise NewerSchema(
            f"checkpoint {path} was made by a newer fastgan ({versions.get('fastgan')}, schema {schema}; "
            f"this one reads up to {SCHEMA}); upgrade fastgan to use it"
        )
    files, state = head.get("files"), head.get("state")
    sound = isinstance(files, dict) and isinstance(state, dict) and all(map(_is_record, files.items()))
    if not sound:
        raise FastganError(f"{path / STATE} is damaged: it does not list the files of a checkpoint")
    return head


def _is_record(item: tuple[str, Any]) -> bool:
    file, record = item
    return (
        file.endswith(_SUFFIX)
        and _PLAIN.fullmatch(file) is not None
        and isinstance(record, dict)
        and isinstance(record.get("bytes"), int)
        and isinstance(record.get("sha256"), str)
    )


def _check_file(path: Path, record: Mapping[str, Any]) -> None:
    """Compares a file of a checkpoint with its record, piece by piece. Raises FastganError."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise FastganError(f"cannot read {path}: {reason(error)}") from error
    _compare(path, record, size, digest.hexdigest())


def _compare(path: Path, record: Mapping[str, Any], size: int, sha256: str) -> None:
    if size != record["bytes"]:
        raise FastganError(f"{path} is damaged: {size:,} bytes instead of {record['bytes']:,}")
    if sha256 != record["sha256"]:
        raise FastganError(f"{path} is damaged: its SHA-256 is not the one that was saved")


def _read_file(path: Path, record: Mapping[str, Any]) -> bytes:
    """The bytes of a file of a checkpoint, compared with its record {bytes, sha256}. Raises FastganError."""
    data = _read(path)
    _compare(path, record, len(data), hashlib.sha256(data).hexdigest())
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FastganError(f"{path} is missing") from error
    except OSError as error:
        raise FastganError(f"cannot read {path}: {reason(error)}") from error


def seal(body: str) -> bytes:
    """A JSON file that holds the SHA-256 of its own text: {"sha256": ..., "body": ...}."""
    text = body.encode()
    return b'{"sha256": "%s",\n"body": %s}\n' % (hashlib.sha256(text).hexdigest().encode(), text)


def unseal(path: Path) -> dict[str, Any]:
    """The body of a sealed JSON file. Raises FastganError where a single bit of it has changed."""
    return unsealed(_read(path), str(path))


def unsealed(data: bytes, path: str) -> dict[str, Any]:
    """`unseal` for the bytes of the file `path`."""
    start, end = len(seal("")) - len("}\n"), -len("}\n")
    body = data[start:end].decode(errors="replace")
    if seal(body) != data:
        raise FastganError(f"{path} is damaged: its text does not match its SHA-256")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FastganError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise FastganError(f"{path} is damaged: expected an object, got {type(value).__name__}")
    return value
