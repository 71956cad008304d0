"""Goldens of feature networks and of resizing, made by the packages that publish them.

    python tools/parity_networks.py [inception] [vgg16] [lpips] [resize] [pytorch_fid]

needs torch-fidelity 0.4.0, lpips 0.1.4, pytorch-fid 0.3.0, clean-fid 0.1.35 and torchvision, which an environment for
fastgan does not have: run it in one of their own. Writes tests/goldens/networks.json, which the tests compare with;
the weights are random, from seeds, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "networks.json"
SIDES = (32, 64, 256, 300, 1024)
KEPT = 64  # numbers that are kept of each output, evenly chosen


def images(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A weight of this name: random, of a scale that keeps activations near 1, the same everywhere."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rpartition(".")[2]
    if kind in ("running_var", "weight") and len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) <= 1:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if name.startswith("lin"):
        return rng.uniform(0, 1, shape).astype(np.float32)
    block = rng.standard_normal(min(int(np.prod(shape)), 1 << 22), np.float32)  # repeated in the largest layers
    return np.resize(block * np.float32((2 / np.prod(shape[1:])) ** 0.5), shape)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items() if "num_batches" not in name}


def some(values: Any) -> list[float]:
    """At most KEPT numbers of an array, from the first to the last."""
    flat = np.asarray(values).reshape(-1)
    return [float(v) for v in flat[np.linspace(0, flat.size - 1, min(KEPT, flat.size)).round().astype(int)]]


def inception() -> dict[str, Any]:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    names = Network.get_provided_features_list()
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in _unloaded(Network, names).state_dict().items()}
    state = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
    state |= {k: torch.tensor(0) for k in shapes if "num_batches" in k}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        network = Network("inception", list(names), feature_extractor_weights_path=file.name)
    with torch.inference_mode():
        resized = network(torch.from_numpy(images(2, 1, 3, 64, 64)))
        network.double().feature_extractor_internal_dtype = torch.float64
        taps = network(torch.from_numpy(images(1, 1, 3, 299, 299)))
    whole = {name: some(tap.numpy()) for name, tap in zip(names, taps, strict=True)}
    return whole | {"fp32, from 64 pixels": some(resized[names.index("2048")])}


def _unloaded(network: Any, names: tuple[str, ...]) -> Any:
    """The module without its weights, of which only the shapes are wanted."""
    from unittest import mock

    from torch import nn

    with mock.patch.object(nn.Module, "load_state_dict"), mock.patch("torch.load", return_value={}):
        return network("inception", list(names), feature_extractor_weights_path="none")


def pytorch_fid() -> dict[str, Any]:
    """pytorch-fid's way from 64x64 images in [0, 1] to 2048 features, resized inside."""
    import torch
    from pytorch_fid import inception as package

    network = package.fid_inception_v3.__globals__["_inception_v3"](num_classes=1008, aux_logits=False, weights=None)
    for name, block in (
        *((f"Mixed_5{x}", package.FIDInceptionA(c, p)) for x, c, p in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64))),
        *((f"Mixed_6{x}", package.FIDInceptionC(768, c)) for x, c in (("b", 128), ("c", 160), ("d", 160), ("e", 192))),
        ("Mixed_7b", package.FIDInceptionE_1(1280)),
        ("Mixed_7c", package.FIDInceptionE_2(2048)),
    ):
        setattr(network, name, block)
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    state = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
    network.load_state_dict(state, strict=False)
    from unittest import mock

    with mock.patch.object(package, "fid_inception_v3", return_value=network):
        model = package.InceptionV3([0, 1, 2, 3]).eval()
    with torch.inference_mode():
        maps = model(torch.from_numpy(images(2, 1, 3, 64, 64)).float() / 255)
    return {str(m.shape[1]): some(m.mean((2, 3)).numpy()) for m in maps}


def vgg16() -> dict[str, Any]:
    import torch
    import torchvision
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16 as Network

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.vgg16().state_dict().items()}
    state = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        network = Network("vgg16", ["fc2", "fc2_relu"], feature_extractor_weights_path=file.name)
    with torch.inference_mode():
        taps = network(torch.from_numpy(images(3, 2, 3, 224, 224)))
    return {name: some(tap.numpy()) for name, tap in zip(("fc2", "fc2_relu"), taps, strict=True)}


def trunk_names(model: Any) -> dict[str, str]:
    """torchvision's names of the trunk's weights ("features.3.bias") by those of an lpips.LPIPS ("slice2.3.bias")."""
    return {own: f"features.{own.rpartition('slice')[2][2:]}" for own in model.net.state_dict()}


def lpips() -> dict[str, Any]:
    import lpips as package
    import torch

    a, b = (torch.from_numpy(images(s, 2, 3, 40, 48)).double() / 127.5 - 1 for s in (4, 5))
    out = {}
    for net in ("alex", "vgg"):
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
        names = trunk_names(model)
        trunk = weights({names[k]: v.shape for k, v in model.net.state_dict().items()})
        model.net.load_state_dict({own: torch.from_numpy(trunk[name]) for own, name in names.items()})
        with torch.inference_mode():
            for name, parameter in model.named_parameters():
                if name.startswith("lin"):
                    parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
            out[net] = some(model.double()(a, b))
    return out


def resize() -> dict[str, Any]:
    import torch
    from cleanfid.resize import build_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tensorflow

    out: dict[str, Any] = {}
    clean, pytorch = build_resizer("clean"), build_resizer("legacy_pytorch")
    for side in SIDES:
        picture = images(side, side, side + 7, 3)
        batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        out[str(side)] = {
            "tensorflow": some(tensorflow(batch, size=(299, 299), align_corners=False)[0]),
            "clean": some(clean(picture).transpose(2, 0, 1)),
            "pytorch": some(pytorch(picture).transpose(2, 0, 1)),
        }
    return out


SUBJECTS = {f.__name__: f for f in (inception, pytorch_fid, vgg16, lpips, resize)}
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torch-fidelity", "pytorch-fid", "clean-fid", "lpips")


def main(names: list[str]) -> None:
    found = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
    for name in names or SUBJECTS:
        print(name, flush=True)
        found[name] = SUBJECTS[name]()
    found["versions"] = {package: version(package) for package in PACKAGES}
    GOLDENS.parent.mkdir(exist_ok=True)
    GOLDENS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
