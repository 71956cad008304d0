"""Packs of small pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from data.pictures import SIZE

from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.pack import pack
from fastgan.data.pack_reader import verify_pack
from fastgan.data.pack_source import PackOptions


def packed(source: Path, target: Path, **options: object) -> ImageSet:
    pack(PackOptions(str(source), str(target), **{"size": SIZE, "workers": 2, **options}))
    assert verify_pack(target, 2)[0] == []
    return open_images(DataOptions(path=str(target), size=SIZE, workers=2))


def everything(images: ImageSet) -> np.ndarray:
    return images.read(np.arange(len(images)))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
