"""Features of images, from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgan import metrics
from fastgan.data import DataOptions, open_images
from fastgan.errors import FastganError
from fastgan.metrics.sources import ahead, eight_bits, features_of, images_of

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (11, 3, 6, 5), dtype=np.uint8))


def means(images: Tensor) -> Tensor:
    """[N, 3, H, W] uint8 -> [N, 3]"""
    assert images.dtype == torch.uint8
    assert images.shape[1] == 3
    return images.float().mean((2, 3))


def all_of(source: Any, batch_size: int = 4) -> Tensor:
    return torch.cat(list(features_of(source, means, batch_size=batch_size)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, picture in enumerate(PIXELS.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(tmp_path / f"{number:03}.png")
    return tmp_path


def test_every_source_gives_the_same(folder: Path) -> None:
    expected = means(PIXELS)
    floats = PIXELS.float() / 127.5 - 1
    for source in (
        PIXELS,
        PIXELS.numpy(),
        PIXELS.permute(0, 2, 3, 1),
        floats,
        floats.double().numpy(),
        floats.contiguous(memory_format=torch.channels_last),
        folder,
        str(folder),
        [PIXELS[:7], PIXELS[7:].numpy()],
        (batch for batch in PIXELS.split(9)),
        iter([floats]),
        images_of(PIXELS),
    ):
        assert torch.equal(all_of(source), expected)


def test_no_batch_is_larger_than_was_asked_for() -> None:
    sizes: list[int] = []

    def note(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return means(images)

    for source in (PIXELS, [PIXELS]):
        sizes.clear()
        list(features_of(source, note, batch_size=3))
        assert sizes == [3, 3, 3, 2]


def test_no_graph_is_recorded() -> None:
    weight = torch.ones(3, requires_grad=True)

    def weighted(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return means(images) * weight

    found = next(features_of(PIXELS, weighted))
    assert torch.is_grad_enabled()
    found.add_(1)  # an ordinary tensor, not one of inference mode
    generator = torch.nn.Linear(1, 5)
    drawn = (generator(torch.zeros(2, 3, 4, 1)).tanh() for _ in range(2))
    assert torch.cat(list(features_of(drawn, weighted))).shape == (4, 3)


def test_greyscale_and_image_sets() -> None:
    gray = PIXELS[:, :1]
    assert torch.equal(all_of(gray), means(gray.expand(-1, 3, -1, -1)))
    digits = open_images(DataOptions(size=8, channels=1))
    pixels = torch.from_numpy(digits.read(np.arange(len(digits)))).permute(0, 3, 1, 2)
    assert torch.equal(all_of(digits, 500), means(pixels.expand(-1, 3, -1, -1)))
    assert images_of(digits).digest() == images_of(digits).digest()  # type: ignore[misc]
    wide, tall = (images_of(PIXELS.reshape(11, 3, *shape)) for shape in ((5, 6), (6, 5)))
    assert wide.digest() != tall.digest()  # type: ignore[misc]


def test_floats_are_rounded_not_truncated() -> None:
    x = torch.tensor([-1.0, -0.9999, 0.0, 0.0039, 1.0, 1.0005]).view(1, 1, 1, 6)
    assert eight_bits(x).flatten().tolist() == [0, 0, 128, 128, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(eight_bits(levels.float() / 127.5 - 1), levels)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PIXELS[0], "expected one or more [N, C, H, W] with C = 1 or 3, got torch.uint8 [3, 6, 5]"),
        (PIXELS[:0], "expected one or more [N, C, H, W]"),
        (PIXELS.float(), "expected values in [-1, 1], got 0 to 255; scale 0...255 by x / 127.5 - 1"),
        (torch.full((2, 3, 4, 4), torch.nan), "expected values in [-1, 1], got nan to nan"),
        (PIXELS.int(), "expected uint8, or float in [-1, 1], got torch.int32"),
        ([PIXELS, "x"], "expected an array or a tensor [N, C, H, W], got str"),
        (17, "expected a folder, zip or pack, an array or a tensor [N, C, H, W], or batches of them, got int"),
        ("/no/such/place", "no such file or folder"),
    ],
)
def test_what_is_no_image(source: Any, message: str) -> None:
    with pytest.raises(FastganError) as caught:
        all_of(source)
    assert message in str(caught.value)


def test_images_without_a_network_and_without_features() -> None:
    with pytest.raises(FastganError, match="images need a feature network: features='inception'"):
        list(features_of(PIXELS))
    with pytest.raises(FastganError, match="expected the name of a network, a file or a callable, got int"):
        list(features_of(PIXELS, 3))
    with pytest.raises(FastganError, match=r"features: expected real \[n, d\], got torch.float32 \[4, 3, 6, 5\]"):
        list(features_of(PIXELS, lambda images: images.float(), batch_size=4))


def test_a_run_is_told_from_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FastganError, match="is a run, not a folder of images; `fastgan eval"):
        list(features_of(tmp_path, means))


def test_ahead_keeps_order_and_errors() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("at the end")

    seen: list[int] = []
    with pytest.raises(ValueError, match="at the end"):  # noqa: PT012
        for item in ahead(items()):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]


def test_metrics_take_images(folder: Path) -> None:
    """The public functions on a folder, with any callable."""
    other = PIXELS.flip(0)[:, :, ::2]
    score = metrics.fid(folder, other, means)
    assert score.value == pytest.approx(metrics.fid(means(PIXELS), means(other)).value, rel=1e-9)
    assert (score.n_real, score.n_fake) == (11, 11)


def test_batches_of_another_size_are_refused() -> None:
    batches = [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 9, 8, dtype=torch.uint8)]
    with pytest.raises(FastganError, match=r"got \[3, 8, 8\] and then \[3, 9, 8\]; bring them to one size"):
        list(images_of(batches).batches(2))
    with pytest.raises(FastganError, match="bring them to one size"):
        metrics.fid(batches, batches[0], lambda images: images.float().mean((2, 3)))
