"""A second home for checkpoints on any file system that fsspec knows: slow, remote, without renames.

    URL/step-000002000/generator.safetensors  ...  state.json     state.json comes last: without it, it is no checkpoint
    URL/latest.json                                               replaced when the rest was read back

Checkpoints are made on the local disk, whole and verified, and copied from there; training never waits for this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from fastgan.errors import FastganError
from fastgan.run import checkpoint
from fastgan.run.files import reason

CHUNK = 8 << 20  # bytes


def is_url(text: str) -> bool:
    """Whether it is for fsspec: such as s3://bucket/run or file:///disk/run."""
    return "://" in text


class Mirror:
    """Copies of a run's checkpoints at `url`; the `keep` newest stay. Raises FastganError in one line."""

    def __init__(self, url: str, *, keep: int = 1) -> None:
        self.url, self._keep = url.rstrip("/"), keep
        with self._explained("use"):
            self._files, self._root = fsspec.core.url_to_fs(self.url)

    def copy(self, path: Path) -> str:
        """Copies the checkpoint folder `path`, reads it back, makes it the latest, removes older ones. Its address."""
        target = f"{self._root}/{path.name}"
        names = [p.name for p in path.iterdir() if p.name != checkpoint.STATE]
        with self._explained("copy a checkpoint to"):
            if self._files.exists(f"{target}/{checkpoint.STATE}"):  # of an abandoned future: no longer whole
                self._files.rm(f"{target}/{checkpoint.STATE}")
            self._files.makedirs(target, exist_ok=True)
            for name in (*names, checkpoint.STATE):
                self._files.put_file(str(path / name), f"{target}/{name}")
                with (path / name).open("rb") as local, self._files.open(f"{target}/{name}", "rb") as remote:
                    if _digest(local) != _digest(remote):
                        raise FastganError(f"{self.url}/{path.name}/{name} is not what was copied there")
            sealed = checkpoint.seal(json.dumps({"latest": path.name}))
            self._files.pipe_file(f"{self._root}/{checkpoint.LATEST}", sealed)
            for old in checkpoint.newest_first(self._names(), path.name)[self._keep :]:
                self._files.rm(f"{self._root}/{old}", recursive=True)
        return f"{self.url}/{path.name}"

    def fetch(self, folder: Path, warn: Callable[[str], None]) -> None:
        """Brings the newest whole checkpoint into the local `folder`; nothing where there is none at all.

        warn: takes a line for each one that is damaged;  FastganError where there are some and none is whole
        """
        with self._explained("read checkpoints from"):
            names = checkpoint.newest_first(self._names(), self._latest(warn))
        for name in names:
            try:
                with self._explained("read a checkpoint from"):
                    self._fetch_one(name, folder)
                return
            except checkpoint.NewerSchema:
                raise
            except FastganError as error:
                warn(f"{error}; trying the one before it")
        if names:
            raise FastganError(f"no checkpoint at {self.url} can be read (each is named above)")

    def _fetch_one(self, name: str, folder: Path) -> None:
        temporary = folder / f"{checkpoint.HIDDEN}fetched-{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            self._files.get_file(f"{self._root}/{name}/{checkpoint.STATE}", str(temporary / checkpoint.STATE))
            for file, record in checkpoint.read_head(temporary)["files"].items():
                size = self._files.size(f"{self._root}/{name}/{file}")
                if size != record["bytes"]:  # before it fills the disk
                    raise FastganError(f"{self.url}/{name}/{file} is damaged: {size} bytes, not {record['bytes']}")
                self._files.get_file(f"{self._root}/{name}/{file}", str(temporary / file))
            checkpoint.adopt(temporary, folder / name)
        except FastganError as error:
            raise type(error)(str(error).replace(str(temporary), f"{self.url}/{name}")) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _names(self) -> list[str]:
        if not self._files.exists(self._root):
            return []
        found = self._files.ls(self._root, detail=True)
        return [each["name"].rstrip("/").rpartition("/")[2] for each in found if each["type"] == "directory"]

    def _latest(self, warn: Callable[[str], None]) -> str | None:
        if not self._files.exists(f"{self._root}/{checkpoint.LATEST}"):
            return None
        try:
            data = self._files.cat_file(f"{self._root}/{checkpoint.LATEST}")
            return checkpoint.latest_of(data, f"{self.url}/{checkpoint.LATEST}")
        except FastganError as error:
            warn(f"{error}; taking the newest checkpoint there")
            return None

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """What a file system raises, of which every one has its own kinds, as one line."""
        try:
            yield
        except FastganError:
            raise
        except Exception as error:
            lines = reason(error).splitlines() if isinstance(error, OSError) else str(error).strip().splitlines()
            why = lines[0][:200] if lines else type(error).__name__
            raise FastganError(f"cannot {what} {self.url}: {why}") from error


def _digest(file: Any) -> bytes:
    digest = hashlib.sha256()
    while data := file.read(CHUNK):
        digest.update(data)
    return digest.digest()
