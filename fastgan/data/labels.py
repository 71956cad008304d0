"""Labels of images: class numbers from names and numbers, and from a file that lists them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastgan.data.files import printable
from fastgan.data.image_set import Indices
from fastgan.errors import FastganError

MAX_CLASSES = 1_000_000
HEADINGS = {"name", "file", "filename", "file_name", "image", "path"}


def numbered(labels: Sequence[int | str], where: str) -> tuple[Indices, tuple[str, ...]]:
    """Class numbers [N] and names of classes. Numbers stay what they are; names are numbered in sorted order."""
    kinds = {type(label) for label in labels}
    if kinds == {int}:
        numbers = np.array(labels, np.int64)
        return numbers, tuple(map(str, range(int(numbers.max()) + 1)))
    if kinds != {str}:
        raise FastganError(f"{where}: some labels are numbers and some are names; use one kind")
    classes = sorted(set(map(str, labels)))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[str(label)] for label in labels], np.int64), tuple(classes)


def read_labels(path: Path, names: Sequence[str]) -> tuple[Indices | None, tuple[str, ...]]:
    """Class numbers [len(names)] and names of classes of the images `names`, from a file.

    path: .csv or .tsv of lines `name,label`; .jsonl of {"name": ..., "label": ...} or [name, label]; .json as StyleGAN
          writes it: {"labels": [[name, number], ...]}, or null for none
    Images go by the name that they have in their folder or archive; where the file's names have no folder in them and
    the images' names are different without theirs, by that. Raises FastganError for what it cannot use, and for images
    without a label.
    """
    where = f"labels {printable(str(path))}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            listed = dict(_rows(file.read(), path.suffix.lower(), where))
    except OSError as error:
        raise FastganError(f"{where}: {error.strerror}; give 'folder' or a .csv, .tsv, .jsonl or .json file") from error
    except UnicodeDecodeError as error:
        raise FastganError(f"{where}: is not text in UTF-8; give a .csv, .tsv, .jsonl or .json file") from error
    return labels_of(listed, names, where)


def labels_of(
    listed: dict[str, int | str] | None, names: Sequence[str], where: str
) -> tuple[Indices | None, tuple[str, ...]]:
    """Class numbers of `names` in the table `listed`; (None, ()) for an empty table."""
    if not listed:
        return None, ()
    as_listed: Callable[[str], str] = str
    if not any("/" in name for name in listed):
        bases = [name.rpartition("/")[2] for name in names]
        if len(set(bases)) == len(bases):
            as_listed = _base
    missing = [name for name in names if as_listed(name) not in listed]
    if missing:
        raise FastganError(
            f"{where}: no label for {len(missing):,} of {len(names):,} images (first: {printable(missing[0])}); "
            f"its names look like {printable(next(iter(listed)))!r}"
        )
    return numbered([listed[as_listed(name)] for name in names], where)


def parse_labels(text: str, suffix: str, where: str) -> dict[str, int | str]:
    """The table in the text of a file of labels."""
    return dict(_rows(text, suffix, where))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _rows(text: str, suffix: str, where: str) -> Iterator[tuple[str, int | str]]:
    """(name, label) of every entry."""
    pairs: Iterable[tuple[int, Any, Any]]
    if suffix == ".json":
        pairs = _from_json(text, where)
    elif suffix == ".jsonl":
        pairs = _from_lines(text, where)
    elif suffix in (".csv", ".tsv", ".txt"):
        pairs = _from_table(text, "\t" if suffix == ".tsv" else ",", where)
    else:
        raise FastganError(f"{where}: expected a .csv, .tsv, .jsonl or .json file, got {suffix or 'no ending'!r}")
    try:
        for number, name, label in pairs:
            if not isinstance(name, str):
                raise FastganError(f"{where}: entry {number}: expected the name of an image, got {str(name)[:50]!r}")
            yield name.replace("\\", "/").removeprefix("./"), class_label(label, f"{where}: entry {number}")
    except csv.Error as error:
        raise FastganError(f"{where}: cannot be read as a table ({error})") from error


def class_label(label: object, where: str) -> int | str:
    """A class number, also where it is written as text, or the name of a class. Raises FastganError for all else."""
    value = label.strip() if isinstance(label, str) else label
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?", value):
        value = int(value) if re.fullmatch(r"\d{1,9}", value) else None  # a number, but not of a class
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CLASSES:
        return value
    if isinstance(value, str) and 0 < len(value) <= 1000:
        return value
    raise FastganError(f"{where}: expected a class number below {MAX_CLASSES:,} or a name, got {str(label)[:50]!r}")


def _from_json(text: str, where: str) -> Iterator[tuple[int, Any, Any]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FastganError(f"{where}: is damaged JSON ({type(error).__name__})") from error
    entries = table.get("labels", table) if isinstance(table, dict) else table
    if entries is None:
        return
    entries = list(entries.items()) if isinstance(entries, dict) else entries
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise FastganError(f"{where}: entry {number}: expected [name, label], got {str(entry)[:50]!r}")
        yield number, entry[0], entry[1]


def _from_lines(text: str, where: str) -> Iterator[tuple[int, Any, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FastganError(f"{where}: line {number} is damaged JSON") from error
        if isinstance(entry, dict):
            name = next((entry[key] for key in ("name", "file_name", "file", "path") if key in entry), None)
            yield number, name, entry.get("label")
        elif isinstance(entry, list) and len(entry) == 2:
            yield number, entry[0], entry[1]
        else:
            raise FastganError(f'{where}: line {number}: expected {{"name": ..., "label": ...}}')


def _from_table(text: str, separator: str, where: str) -> Iterator[tuple[int, Any, Any]]:
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=separator), 1):
        if not row or (number == 1 and row[0].strip().lower() in HEADINGS):
            continue
        if len(row) != 2:
            raise FastganError(f"{where}: line {number}: expected name{separator!r}label, got {len(row)} columns")
        yield number, row[0].strip(), row[1]
