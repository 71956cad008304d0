"""From images to features: a network, what it wants to see, and a record of every choice that a score hangs on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError, suggest
from fastgan.features import digits, inception, vgg16
from fastgan.features.resize import pillow_bicubic, pytorch_bilinear, tensorflow_bilinear
from fastgan.features.weights import INCEPTION, VGG16, file_hash, obtain

NETWORKS = {"inception": inception.TAPS, "vgg16": vgg16.TAPS, "digits": digits.TAPS}


@dataclass(frozen=True)
class Preparation:
    """How 8-bit images become what the Inception sees: resized, then (x - centre) / half."""

    resize: Callable[[Tensor, int], Tensor]
    centre: float
    half: float


# By the name of --resize. Which packages each one is: docs/evaluation.md.
PREPARATIONS = {
    "tensorflow": Preparation(tensorflow_bilinear, 128.0, 128.0),
    "pytorch": Preparation(pytorch_bilinear, 127.5, 127.5),
    "clean": Preparation(pillow_bicubic, 128.0, 128.0),
}


@dataclass(frozen=True)
class FeatureProtocol:
    """What decides the features of an image.

    network: inception, vgg16, digits, or the file's name;  layer: which of its outputs
    resize:  how images are brought to the network's size;  weights: SHA-256 of the file;  verified: how far, in words
    arithmetic: fp32, bf16 where that was asked for, or tf32 where PyTorch's convolutions round their input to it (its
                default on GPUs that can)
    """

    network: str
    layer: str
    resize: str
    weights: str
    verified: str
    arithmetic: str = "fp32"


@dataclass(frozen=True, eq=False)
class Extractor:
    """Called with images, uint8 [N, 3, H, W], it gives their features, fp32 [N, d] on its device.

    Every image is treated alone: what comes out does not depend on the batch beyond rounding.
    logits: class logits [N, classes] from the features, as the Inception score takes them; None where there are none
    exact:  of a network in bf16 the same one in full precision, to measure against
    """

    protocol: FeatureProtocol
    run: Callable[[Tensor], Tensor]
    device: torch.device
    logits: Callable[[Tensor], Tensor] | None = None
    exact: Extractor | None = None

    @property
    def name(self) -> str:
        return f"{self.protocol.network}:{self.protocol.layer}" if self.protocol.layer else self.protocol.network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
            raise FastganError(f"features: expected images uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        out = self.run(images.to(self.device).expand(-1, 3, -1, -1))
        if not isinstance(out, Tensor) or len(out) != len(images):
            came = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise FastganError(f"features of {self.name}: expected a tensor [{len(images)}, d], got {came}")
        return out.flatten(1).float()


def open_extractor(
    features: str | os.PathLike[str] = "inception",
    *,
    weights: str | os.PathLike[str] | None = None,
    download: bool = False,
    resize: str = "tensorflow",
    bf16: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extractor:
    """The feature network called `features`.

    features: "inception", "vgg16" or "digits", with ":LAYER" behind it for another layer than the usual one, or a file
              of TorchScript (.pt) or torch.export (.pt2), which takes images uint8 [N, 3, H, W] and gives [N, d]
    weights:  file of the published weights; else they are looked for in the cache folder, or, with `download`, loaded
              from the published address, and verified in any case
    resize:   "tensorflow", "pytorch" or "clean", for the Inception
    bf16:     the Inception and VGG16 in bf16: scores are close to those in fp32, and not the same; `evaluate` measures
              by how much on a sample
    device:   the GPU where there is one, by default
    Raises FastganError for an unknown name, layer or file, and for weights that are not there or damaged.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    text = os.fspath(features)
    network, _, layer = text.partition(":")
    if bf16:
        _check_bf16(network, place)
    if network not in NETWORKS:
        if Path(text).suffix in (".pt", ".pt2", ".ts", ".jit") or os.path.exists(text):
            return _from_file(Path(text), place)
        raise FastganError(
            f"features {text!r}: no such network, and no file of TorchScript (.pt) or torch.export (.pt2)"
            f"{suggest(network, NETWORKS)}"
        )
    layers = NETWORKS[network]
    layer = layer or {"inception": "2048", "vgg16": "fc2_relu", "digits": "64"}[network]
    if layer not in layers:
        raise FastganError(f"features {text!r}: {network} has no layer {layer!r}{suggest(layer, layers)}")
    if resize not in PREPARATIONS:
        raise FastganError(f"resize {resize!r} is unknown{suggest(resize, PREPARATIONS)}")
    if network == "digits":
        return _digits(layer, place)
    if network == "vgg16":
        exact = _vgg16(layer, obtain(VGG16, weights, download=download, progress=progress), place)
    else:
        exact = _inception(layer, obtain(INCEPTION, weights, download=download, progress=progress), resize, place)
    return in_bf16(exact) if bf16 else exact


def in_bf16(exact: Extractor) -> Extractor:
    """The same network with products and convolutions in bf16 (autocast); features are fp32 again after it."""

    def run(images: Tensor) -> Tensor:
        with torch.autocast(exact.device.type, torch.bfloat16):
            return exact.run(images)

    return replace(exact, protocol=replace(exact.protocol, arithmetic="bf16"), run=run, exact=exact)


def _check_bf16(network: str, device: torch.device) -> None:
    """Raise FastganError where bf16 is not offered, or would be slower than fp32."""
    if network not in ("inception", "vgg16"):
        raise FastganError(f"bf16: offered for inception and vgg16, not for {network!r}; leave --bf16 out")
    if device.type == "cuda":
        with torch.cuda.device(device):
            there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not there:
        raise FastganError(f"bf16: {device} has no instructions for it and would be slower; leave --bf16 out")


def _arithmetic(device: torch.device) -> str:
    return "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def _inception(layer: str, weights: Any, resize: str, device: torch.device) -> Extractor:
    network = inception.load_inception(weights.tensors, weights.source).to(device)
    how = PREPARATIONS[resize]

    def run(images: Tensor) -> Tensor:
        scaled = how.resize(images, inception.SIDE).sub(how.centre).div_(how.half)
        out: Tensor = network(scaled.contiguous(memory_format=torch.channels_last), layer)
        return out

    protocol = FeatureProtocol("inception", layer, resize, weights.sha256, weights.note, _arithmetic(device))
    return Extractor(protocol, run, device, network.logits if layer == "2048" else None)


def _vgg16(layer: str, weights: Any, device: torch.device) -> Extractor:
    network = vgg16.load_vgg16(weights.tensors, weights.source).to(device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (vgg16.MEAN, vgg16.STD))

    def run(images: Tensor) -> Tensor:
        scaled = tensorflow_bilinear(images, vgg16.SIDE).sub(mean).div_(std)
        out: Tensor = network(scaled.contiguous(memory_format=torch.channels_last), layer)
        return out

    protocol = FeatureProtocol("vgg16", layer, "tensorflow", weights.sha256, weights.note, _arithmetic(device))
    return Extractor(protocol, run, device)


def _digits(layer: str, device: torch.device) -> Extractor:
    network, weights = digits.load_digits_network()
    network.to(device)

    def run(images: Tensor) -> Tensor:
        out: Tensor = network(digits.prepare(images), layer)
        return out

    protocol = FeatureProtocol("digits", layer, "antialiased to 16", weights.sha256, weights.note, _arithmetic(device))
    return Extractor(protocol, run, device, network.logits if layer == "64" else None)


def _from_file(path: Path, device: torch.device) -> Extractor:
    """A network in a file, which says itself how images are brought to its size."""
    sha256 = file_hash(path)
    try:
        if path.suffix == ".pt2":
            module: Any = torch.export.load(path).module().to(device)
            extra = {}
        else:
            load: Any = torch.jit.load
            with warnings.catch_warnings():  # it is deprecated; the field's published files are of that kind
                warnings.simplefilter("ignore", DeprecationWarning)
                module = load(str(path), map_location=device).eval()
            # The published TorchScript files of this field give logits, or features where they are asked for.
            arguments = {argument.name for argument in module.forward.schema.arguments}
            extra = {"return_features": True} if "return_features" in arguments else {}
    except Exception as error:  # both readers raise many kinds on other and on damaged files; all of them are reported
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FastganError(f"{path}: cannot be read as TorchScript or torch.export (.pt2): {reason}") from None

    def run(images: Tensor) -> Tensor:
        try:
            out: Tensor = module(images.contiguous(), **extra)
        except RuntimeError as error:
            reason = [line for line in str(error).splitlines() if line.strip()][-1][:160]
            raise FastganError(
                f"{path}: failed on images uint8 {list(images.shape)}: {reason}; it has to take any number of 8-bit "
                "images [N, 3, H, W]"
            ) from None
        return out

    protocol = FeatureProtocol(path.name, "", "its own", sha256, "a file of yours", _arithmetic(device))
    return Extractor(protocol, run, device)
