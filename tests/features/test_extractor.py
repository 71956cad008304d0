"""From a name or a file to an extractor; the network of the digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgan.data import DataOptions, open_images
from fastgan.errors import FastganError
from fastgan.features import Extractor, FeatureProtocol, open_extractor
from fastgan.features.digits import FILE, prepare, train_digits
from fastgan.features.extractor import in_bf16


class Mean(nn.Module):
    """Mean and greatest value of each channel, [N, 6]; what it is given are 8-bit images."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)


class Published(nn.Module):
    """As the field's TorchScript files: logits, unless features are asked for."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        y = x.float().mean((2, 3))
        return y if return_features else y * 0


PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 9, 8), dtype=np.uint8))


@pytest.fixture(scope="module")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_torchscript_and_export(tmp_path: Path) -> None:
    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Mean(), (PIXELS,), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "mean.pt2")
    torch.jit.script(Published()).save(str(tmp_path / "published.pt"))
    for name, expected in (
        ("mean.pt", Mean()(PIXELS)),
        ("mean.pt2", Mean()(PIXELS)),
        ("published.pt", PIXELS.float().mean((2, 3))),
    ):
        extract = open_extractor(tmp_path / name, device="cpu")
        assert torch.equal(extract(PIXELS), expected)
        assert torch.equal(extract(PIXELS[:2]), expected[:2])
        assert (extract.name, len(extract.protocol.weights)) == (name, 64)
    gray = PIXELS[:, :1]
    assert torch.equal(open_extractor(tmp_path / "mean.pt", device="cpu")(gray), Mean()(gray.expand(-1, 3, -1, -1)))


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(FastganError, match=r"linear.pt: failed on images uint8 \[5, 3, 9, 8\]"):
        open_extractor(tmp_path / "linear.pt", device="cpu")(PIXELS)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(FastganError, match=r"text.pt: cannot be read as TorchScript or torch.export"):
        open_extractor(tmp_path / "text.pt", device="cpu")
    with pytest.raises(FastganError, match=r"no.pt: No such file"):
        open_extractor(tmp_path / "no.pt", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "incepton"}, "did you mean 'inception'?"),
        ({"features": "inception:2047"}, "inception has no layer '2047'; did you mean '2048'?"),
        ({"features": "inception", "resize": "cleen"}, "resize 'cleen' is unknown; did you mean 'clean'?"),
    ],
)
def test_unknown_names(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(FastganError) as caught:
        open_extractor(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_what_is_no_image_and_what_are_no_features() -> None:
    protocol = FeatureProtocol("mine", "", "none", "0" * 64, "not at all")
    extract = Extractor(protocol, lambda images: images[:, :, 0, 0].float(), torch.device("cpu"))
    assert extract(PIXELS).shape == (5, 3)
    for wrong in (PIXELS.float(), PIXELS[0], PIXELS[:, :2], PIXELS[:0]):
        with pytest.raises(FastganError, match=r"expected images uint8 \[N, 3, H, W\], got"):
            extract(wrong)
    short = replace(extract, run=lambda images: images[:2, 0, 0].float())
    with pytest.raises(FastganError, match=r"features of mine: expected a tensor \[5, d\], got \[2, 8\]"):
        short(PIXELS)


def test_digits(digits_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(digits_cache))
    network, accuracy = train_digits()
    assert accuracy > 0.97
    assert accuracy < 1  # of digits that it has not seen
    first = open_extractor("digits", device="cpu")
    again = open_extractor("digits", device="cpu")  # from the cache
    assert first.protocol == again.protocol
    images = open_images(DataOptions(size=32, channels=1))
    pixels = torch.from_numpy(images.read(np.arange(len(images)))).permute(0, 3, 1, 2)
    features = first(pixels)
    assert torch.equal(features, again(pixels))
    assert torch.equal(features, network(prepare(pixels)))  # trained twice, the same to the last bit
    assert features.mean(0).abs().max() < 1e-4
    assert (features.std(0) - 1).abs().max() < 1e-4
    assert first.logits is not None
    logits = open_extractor("digits:logits", device="cpu")(pixels)
    assert torch.allclose(first.logits(features), logits, rtol=1e-5, atol=1e-5)
    assert images.labels is not None
    # 0.989 to 0.995, by the processor: its rounding decides how training ends.
    assert (logits.argmax(1) == torch.from_numpy(images.labels)).double().mean() > 0.98


def test_a_damaged_cache_of_the_digits_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.setattr("fastgan.features.digits.EPOCHS", 1)
    first = open_extractor("digits", device="cpu")
    (tmp_path / "weights" / FILE).write_bytes(b"broken")
    assert open_extractor("digits", device="cpu").protocol == first.protocol
    assert (tmp_path / "weights" / FILE).stat().st_size > 1000


def test_bf16_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (5, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Conv2d(3, 4, 3)
    run = lambda x: layer(x.float() / 255).mean((2, 3))  # noqa: E731
    exact = Extractor(FeatureProtocol("mine", "", "", "", ""), run, torch.device("cpu"))
    made = in_bf16(exact)
    assert made.protocol.arithmetic == "bf16"
    error = (made(images) - exact(images)).norm() / exact(images).norm()
    assert made(images).dtype == torch.float32
    assert 1e-6 < error < 2e-2
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(FastganError, match="no instructions for it"):
        open_extractor("vgg16", bf16=True, device="cpu")
