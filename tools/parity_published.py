"""What the packages give with the *published* weights, as goldens: tests/goldens/published.json.

    python -m tools.parity_published FOLDER

in the environment that tools/parity.py describes. FOLDER holds `inception.pth` (the published state_dict),
`alexnet.pth` and `vgg16.pth` (torchvision's; the convolutions suffice), the published LPIPS heads under fastgan's names
for them, and the pictures `ex_ref.png`, `ex_p0.png` and `ex_p1.png` of the LPIPS repository.
tests/features/test_published.py compares fastgan with them, where it is given the same folder.

First come numbers that were published beside the code (`PUBLISHED`), which show that the weights are the right ones.
Then FID and KID of crops of two photographs, by the three preparations of images that the field has.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tools.parity_networks import some, trunk_names

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "published.json"
INCEPTION, TRUNKS = "inception.pth", {"alex": "alexnet.pth", "vgg": "vgg16.pth"}
# torchmetrics' documentation where the seed is 123 (its later one draws other images), and the LPIPS distances that
# ports of the package quote as its own.
PUBLISHED = {"FID of 64 features": 12.7202, "KID": 0.0337, "its std": 0.0023, "vgg": [0.569, 0.422]}
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # which scikit-learn brings along
SETS = {"64 pixels": (100, 64), "400 pixels": (40, 400)}  # crops of each photograph: how many, and their sides
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torch-fidelity", "torchmetrics", "pytorch-fid", "clean-fid")


def drawn() -> tuple[Any, Any]:
    """The two sets of the examples of torchmetrics, [100, 3, 299, 299] uint8, from PyTorch's generator as it is."""
    import torch

    shape = (100, 3, 299, 299)
    return torch.randint(0, 200, shape, dtype=torch.uint8), torch.randint(100, 255, shape, dtype=torch.uint8)


def crops(photograph: str, count: int, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[count, side, side, 3] of one of PHOTOGRAPHS."""
    from sklearn.datasets import load_sample_image

    picture = load_sample_image(photograph)
    rng = np.random.default_rng(side)
    top, left = (rng.integers(0, size - side + 1, count) for size in picture.shape[:2])
    return np.stack([picture[y : y + side, x : x + side] for y, x in zip(top, left, strict=True)])


def write_crops(parent: Path, count: int, side: int) -> tuple[Path, Path]:
    """Two folders of PNG files in `parent`: crops of the one photograph, and of the other."""
    from PIL import Image

    folders = parent / "real", parent / "fake"
    for folder, photograph in zip(folders, PHOTOGRAPHS, strict=True):
        folder.mkdir()
        for number, pixels in enumerate(crops(photograph, count, side)):
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folders


def examples() -> dict[str, Any]:
    """torchmetrics' documented examples: seed 123, then the metric, then the images."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    torch.manual_seed(123)
    fid = FrechetInceptionDistance(feature=64)
    state = torch.get_rng_state()  # building the network has drawn from the generator
    for images, real in zip(drawn(), (True, False), strict=True):
        fid.update(images, real=real)
    torch.manual_seed(123)
    kid = KernelInceptionDistance(subset_size=50)
    assert torch.equal(torch.get_rng_state(), state)
    for images, real in zip(drawn(), (True, False), strict=True):
        kid.update(images, real=real)
    mean, std = (float(v) for v in kid.compute())
    return {
        "generator": base64.b64encode(state.numpy().tobytes()).decode(),
        "FID of 64 features": float(fid.compute()),
        "KID": mean,
        "its std": std,
    }


def lpips(folder: Path) -> dict[str, list[float]]:
    """Distances of ex_p0 and ex_p1 from ex_ref."""
    import lpips as package
    import torch
    from PIL import Image

    names = ("ex_ref.png", "ex_p0.png", "ex_p1.png")
    reference, *others = (package.im2tensor(np.asarray(Image.open(folder / n).convert("RGB"))) for n in names)
    out = {}
    for net, name in TRUNKS.items():
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
        trunk = torch.load(folder / name, map_location="cpu", weights_only=True)
        model.net.load_state_dict({own: trunk[name] for own, name in trunk_names(model).items()})
        with torch.inference_mode():
            out[net] = [float(model(reference, other)) for other in others]
    return out


def photographs(weights: Path, count: int, side: int) -> dict[str, Any]:
    """FID, KID and some features by each package, from folders of PNG files."""
    with tempfile.TemporaryDirectory() as scratch:
        real, fake = map(str, write_crops(Path(scratch), count, side))
        return {
            "tensorflow": by_torch_fidelity(real, fake, weights),
            "pytorch": by_pytorch_fid(real, fake),
            "clean": by_clean_fid(real, fake),
        }


def by_torch_fidelity(real: str, fake: str, weights: Path) -> dict[str, Any]:
    from torch_fidelity import calculate_metrics

    how = {
        "feature_extractor_weights_path": str(weights),
        "samples_shuffle": False,
        "cache": False,
        "cuda": False,
        "verbose": False,
    }
    found = calculate_metrics(input1=fake, input2=real, fid=True, kid=True, kid_subset_size=30, **how)
    early = calculate_metrics(input1=fake, input2=real, fid=True, feature_layer_fid="64", **how)
    return {
        "fid": found["frechet_inception_distance"],
        "fid of 64 features": early["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "kid's std": found["kernel_inception_distance_std"],
    }


def by_pytorch_fid(real: str, fake: str) -> dict[str, Any]:
    from pytorch_fid import fid_score
    from pytorch_fid.inception import InceptionV3

    model = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    files = sorted(Path(real).glob("*.png"))
    features = fid_score.get_activations(files, model, 20, 2048, "cpu", 0)
    fid, early = (fid_score.calculate_fid_given_paths([real, fake], 20, "cpu", dims, 0) for dims in (2048, 64))
    return {"fid": float(fid), "fid of 64 features": float(early), "features": some(features)}


def by_clean_fid(real: str, fake: str) -> dict[str, Any]:
    """Its own network is TorchScript of the same weights: pytorch-fid's stands in, scaled as that one scales."""
    import torch
    from cleanfid import fid
    from pytorch_fid.inception import InceptionV3

    model = InceptionV3([3], resize_input=False, normalize_input=False).eval()

    def features_of(images: Any) -> Any:
        with torch.inference_mode():
            return model((images - 128) / 128)[0].flatten(1)

    how = {"mode": "clean", "num_workers": 0, "batch_size": 20, "device": torch.device("cpu"), "verbose": False}
    features = fid.get_folder_features(real, features_of, **how)
    distance = fid.compute_fid(real, fake, custom_feat_extractor=features_of, use_dataparallel=False, **how)
    return {"fid": float(distance), "features": some(features)}


def main(folder: Path) -> None:
    import torch

    weights = folder / INCEPTION
    state = torch.load(weights, map_location="cpu", weights_only=True)
    loader = mock.Mock(side_effect=lambda *_, **__: dict(state))
    with (
        mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", loader),
        mock.patch("pytorch_fid.inception.load_state_dict_from_url", loader),
    ):
        found: dict[str, Any] = {"examples": examples(), "lpips": lpips(folder)}
        found |= {name: photographs(weights, *shape) for name, shape in SETS.items()}
    found["weights"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (INCEPTION, *TRUNKS.values())
    }
    found["versions"] = {package: version(package) for package in PACKAGES}
    GOLDENS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
