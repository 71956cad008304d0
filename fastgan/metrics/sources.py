"""From whatever holds samples to batches of features.

Samples are features already ([n, d] arrays, tensors, or an iterable of them), or images: a folder or zip, a tensor or
array [N, C, H, W], an ImageSet, or an iterable of such batches. Images are 8-bit where a feature network sees them:
floats in [-1, 1] are rounded to 256 levels, as they would be in a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.native import open_native
from fastgan.data.pack_format import is_pack, read_index
from fastgan.errors import FastganError
from fastgan.features import open_extractor
from fastgan.kernels.arrays import tensor_of

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Images:
    """Images to be evaluated.

    batches: size -> batches of at most so many, uint8 [n, C, H, W]
    count:   how many there are; None where that shows only at the end
    digest:  SHA-256 of what they are; None where that would take drawing them
    every:   size, first, step -> every step-th of the batches, from number `first` on, without making the others;
             None where all have to be made
    names:   of the files, in order; () where they are no files
    """

    name: str
    batches: Callable[[int], Iterator[Tensor]]
    count: int | None = None
    digest: Callable[[], str] | None = None
    every: Callable[[int, int, int], Iterator[Tensor]] | None = None
    names: tuple[str, ...] = ()

    def share(self, rank: int, world: int) -> Images:
        """The batches number rank, rank + world, ...: whole ones, so that networks see the same ones on any number."""
        if world == 1:
            return self
        every = self.every
        if every is not None:
            return replace(self, batches=lambda size: every(size, rank, world), every=None)
        return replace(self, batches=lambda size: islice(self.batches(size), rank, None, world))


def features_of(source: Any, features: Any = None, *, batch_size: int = 64) -> Iterator[Tensor]:
    """Batches [n, d] of features.

    source:   features [n, d] already (a NumPy array or a torch tensor), or an iterable of such batches; or images, as
              `images_of` takes them
    features: what makes features of images: an Extractor, what `open_extractor` takes ("inception", "digits", a file),
              or a callable from uint8 [N, 3, H, W] to [N, d]
    batch_size: images that the network sees at once; memory is bounded by it
    """
    if not isinstance(source, (np.ndarray, Tensor, str, os.PathLike, ImageSet, Images, dict, bytes)) and isinstance(
        source, Iterable
    ):
        source, first = _peek(source)
        if _dimensions(first) == 2 or (features is None and _dimensions(first) != 4):
            yield from (matrix(batch) for batch in source)
            return
    elif _dimensions(source) == 2 or (features is None and _dimensions(source) not in (0, 4)):
        yield matrix(source)
        return
    elif not isinstance(source, (str, os.PathLike)):
        source = images_of(source)  # what cannot be images is refused before a network is asked for
    extract = extractor_of(features)
    for batch in ahead(images_of(source).batches(batch_size)):
        with torch.no_grad():
            found = extract(batch)
        yield matrix(found)


def extractor_of(features: Any) -> Callable[[Tensor], Any]:
    """The callable that `features` means, from uint8 [N, C, H, W] to [N, d]."""
    if features is None:
        raise FastganError(
            "images need a feature network: features='inception', 'vgg16', 'digits', a file of TorchScript or "
            "torch.export, or a callable"
        )
    if isinstance(features, (str, os.PathLike)):
        return open_extractor(features)
    if callable(features):
        found: Callable[[Tensor], Any] = features
        return lambda images: found(images.expand(-1, 3, -1, -1))
    raise FastganError(f"features: expected the name of a network, a file or a callable, got {type(features).__name__}")


def images_of(source: Any) -> Images:
    """The images in `source`.

    source: path of a folder or .zip of images of one size, or of a pack; an ImageSet; uint8 or float in [-1, 1],
            [N, C, H, W] (uint8 also [N, H, W, C]) of 1 or 3 channels; or an iterable of such batches
    Raises FastganError, also while they are read, for what is none of it.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _files(source)
    if isinstance(source, ImageSet):
        return _image_set(source)
    if isinstance(source, (np.ndarray, Tensor)):
        pixels = eight_bits(source)
        return Images(
            "images",
            lambda size: iter(torch.split(pixels, size)),
            len(pixels),
            lambda: _digest([pixels]),
            lambda size, first, step: iter(torch.split(pixels, size)[first::step]),
        )
    if isinstance(source, Iterable) and not isinstance(source, (bytes, dict)):
        return Images("images", lambda size: chain.from_iterable(torch.split(x, size) for x in of_one_size(source)))
    raise FastganError(
        "images: expected a folder, zip or pack, an array or a tensor [N, C, H, W], or batches of them, got "
        f"{type(source).__name__}"
    )


def of_one_size(batches: Iterable[Any]) -> Iterator[Tensor]:
    """In 8 bits. FastganError where a batch has images of another shape than those before it."""
    shape: list[int] | None = None
    for batch in batches:
        images = eight_bits(batch)
        if shape is not None and list(images.shape[1:]) != shape:
            raise FastganError(
                f"images: expected [N, C, H, W] of one size, got {shape} and then {list(images.shape[1:])}; bring them "
                "to one size first"
            )
        shape = list(images.shape[1:])
        yield images


def eight_bits(batch: Any) -> Tensor:
    """uint8 [N, C, H, W] of uint8 or float images. FastganError for another type or shape, and for values off."""
    if not isinstance(batch, (np.ndarray, Tensor)):
        raise FastganError(f"images: expected an array or a tensor [N, C, H, W], got {type(batch).__name__}")
    given = tensor_of("images", batch)
    if given.dtype == torch.uint8 and given.dim() == 4 and given.shape[1] not in (1, 3) and given.shape[3] in (1, 3):
        given = given.permute(0, 3, 1, 2)
    if given.dim() != 4 or given.shape[1] not in (1, 3) or not given[:1].numel():
        raise FastganError(
            f"images: expected one or more [N, C, H, W] with C = 1 or 3, got {given.dtype} {list(given.shape)}"
        )
    if given.dtype == torch.uint8:
        return given
    if not given.is_floating_point():
        raise FastganError(f"images: expected uint8, or float in [-1, 1], got {given.dtype}")
    low, high = (float(v) for v in torch.aminmax(given))
    if not (low >= -1.001 and high <= 1.001):  # also where a value is not a number
        raise FastganError(
            f"images: expected values in [-1, 1], got {low:.4g} to {high:.4g}; scale 0...255 by x / 127.5 - 1, or give "
            "uint8"
        )
    return given.float().mul(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def matrix(value: Any) -> Tensor:
    """value: [n, d], real. Its dtype where that is floating, else fp64."""
    if not isinstance(value, (np.ndarray, Tensor)):
        raise FastganError(f"features: expected an array or a tensor [n, d], got {type(value).__name__}")
    given = tensor_of("features", value)
    if given.dim() != 2 or not given.shape[1] or given.is_complex():
        raise FastganError(f"features: expected real [n, d], got {given.dtype} {list(given.shape)}")
    return given if given.is_floating_point() else given.double()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each of which a thread gets while its predecessor is being used."""
    with ThreadPoolExecutor(1, thread_name_prefix="fastgan-ahead") as pool:
        end: Any = object()
        upcoming = pool.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, items, end)
            yield item


def _files(path: str | os.PathLike[str]) -> Images:
    if (Path(path).expanduser() / "checkpoints").is_dir():
        raise FastganError(
            f"{path} is a run, not a folder of images; `fastgan eval {path}` evaluates it, `fastgan sample --singles` "
            "writes its images"
        )
    if is_pack(Path(path).expanduser()):
        index = read_index(Path(path).expanduser())
        return _image_set(open_images(DataOptions(path=os.fspath(path), size=index.size, channels=index.channels)))
    found = open_native(path)

    def batches(size: int, first: int = 0, step: int = 1) -> Iterator[Tensor]:
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2) for pixels in found.batches(size, first, step))

    return Images(found.name, batches, found.count, lambda: found.sha256, batches, found.files.names)


def _image_set(images: ImageSet) -> Images:
    def batches(size: int, first: int = 0, step: int = 1) -> Iterator[Tensor]:
        for start in range(first * size, len(images), step * size):
            pixels = images.read(np.arange(start, min(start + size, len(images))))
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2)

    return Images(images.name, batches, len(images), lambda: _digest(batches(256)), batches)


def _digest(batches: Iterable[Tensor]) -> str:
    """SHA-256 of pixels and of their shape."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(f"{list(batch.shape[1:])}".encode())
        digest.update(batch.permute(0, 2, 3, 1).contiguous().numpy(force=True).data)
    return digest.hexdigest()


def _peek(source: Iterable[Any]) -> tuple[Iterable[Any], Any]:
    """The iterable with its first item still in it, and that item; None where there is none."""
    items = iter(source)
    for first in items:
        return chain([first], items), first
    return (), None


def _dimensions(value: Any) -> int:
    return value.ndim if isinstance(value, (np.ndarray, Tensor)) else 0
