"""Scores of images with the published weights, against published numbers and against the packages.

The weights are too large to come along: without FASTGAN_PUBLISHED=FOLDER (tools/parity_published.py says what is in it)
only the goldens themselves are compared with what was published.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgan import metrics
from fastgan.features.extractor import open_extractor
from fastgan.features.lpips import load_lpips
from fastgan.features.weights import LPIPS_ALEX, LPIPS_VGG, obtain, read_tensors
from fastgan.kernels.polynomial_mmd import Kernel, polynomial_mmd
from tools.parity_networks import some
from tools.parity_published import INCEPTION, PHOTOGRAPHS, PUBLISHED, SETS, TRUNKS, crops, drawn, write_crops

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "published.json").read_text())


@pytest.fixture(scope="module")
def folder() -> Path:
    if not (found := os.environ.get("FASTGAN_PUBLISHED")):
        pytest.skip("the published weights: FASTGAN_PUBLISHED=FOLDER, see tools/parity_published.py")
    return Path(found)


def test_the_packages_gave_the_published_numbers() -> None:
    for name in ("FID of 64 features", "KID", "its std"):
        assert round(GOLDENS["examples"][name], 4) == PUBLISHED[name]
    assert [round(d, 3) for d in GOLDENS["lpips"]["vgg"]] == PUBLISHED["vgg"]


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Those of the published examples; the generator stands behind them afterwards."""
    state = np.frombuffer(base64.b64decode(GOLDENS["examples"]["generator"]), np.uint8).copy()
    torch.set_rng_state(torch.from_numpy(state))
    return drawn()


def test_the_published_fid(folder: Path, images: tuple[Tensor, Tensor]) -> None:
    extract = open_extractor("inception:64", weights=folder / INCEPTION, device="cpu")
    found = metrics.fid(*images, features=extract, batch_size=25).value
    assert round(found, 4) == PUBLISHED["FID of 64 features"]
    assert found == pytest.approx(GOLDENS["examples"]["FID of 64 features"], rel=1e-6)


def test_the_published_kid(folder: Path, images: tuple[Tensor, Tensor]) -> None:
    extract = open_extractor(weights=folder / INCEPTION, device="cpu")
    real, fake = (torch.cat([extract(batch) for batch in side.split(25)]) for side in images)
    subsets = [(torch.randperm(100)[:50], torch.randperm(100)[:50]) for _ in range(100)]  # as the example draws them
    scores = polynomial_mmd(real, fake, *map(torch.stack, zip(*subsets, strict=True)), Kernel(3, 1 / 2048, 1.0))
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    assert (round(mean, 4), round(std, 4)) == (PUBLISHED["KID"], PUBLISHED["its std"])
    assert mean == pytest.approx(GOLDENS["examples"]["KID"], rel=1e-4)


@pytest.mark.parametrize("net", TRUNKS)
def test_the_published_lpips(folder: Path, net: str) -> None:
    published = {"alex": LPIPS_ALEX, "vgg": LPIPS_VGG}[net]
    heads = obtain(published, folder / published.name)
    assert heads.note == "SHA-256 verified"
    network = load_lpips(read_tensors(folder / TRUNKS[net]), heads.tensors, net, ("trunk", "heads"))
    pictures = (np.array(Image.open(folder / f"ex_{name}.png").convert("RGB")) for name in ("ref", "p0", "p1"))
    reference, *others = (torch.from_numpy(p).permute(2, 0, 1)[None] / 127.5 - 1 for p in pictures)
    found = [float(network(reference, other)) for other in others]
    assert found == pytest.approx(GOLDENS["lpips"][net], rel=1e-5)
    if net in PUBLISHED:
        assert [round(distance, 3) for distance in found] == PUBLISHED[net]


@pytest.fixture(scope="module", params=SETS)
def photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Name of the set, and two folders of PNG files."""
    return request.param, *write_crops(tmp_path_factory.mktemp("crops"), *SETS[request.param])


@pytest.mark.parametrize("resize", ["tensorflow", "pytorch", "clean"])
def test_the_packages_scores_of_photographs(folder: Path, photographs: tuple[str, Path, Path], resize: str) -> None:
    name, real, fake = photographs
    golden: dict[str, Any] = GOLDENS[name][resize]
    how: dict[str, Any] = {"weights": folder / INCEPTION, "resize": resize, "device": "cpu"}
    extract = open_extractor(**how)
    # Of fewer images than features the packages' sqrtm is not exact.
    assert metrics.fid(real, fake, features=extract).value == pytest.approx(golden["fid"], rel=1e-4)
    if "fid of 64 features" in golden and SETS[name][0] > 64:
        early = metrics.fid(real, fake, features=open_extractor("inception:64", **how)).value
        assert early == pytest.approx(golden["fid of 64 features"], rel=1e-5)
    if "kid" in golden:
        kid = metrics.kid(real, fake, features=extract, subset_size=30)
        assert kid.value == pytest.approx(golden["kid"], rel=1e-5)
        assert kid.values["std"] == pytest.approx(golden["kid's std"], rel=1e-4)
    if "features" in golden:
        pixels = torch.from_numpy(crops(PHOTOGRAPHS[0], *SETS[name])).permute(0, 3, 1, 2)
        found = some(torch.cat([extract(batch) for batch in pixels.split(20)]).numpy())
        assert found == pytest.approx(golden["features"], abs=2e-4)
