"""What the public implementations of metrics give on seeded inputs, as goldens: tests/goldens/metrics.json.

Runs in an environment of its own, because some of them need torchvision and old SciPy:

    python3.11 -m venv peers
    peers/bin/pip install torch==2.14.1 torchvision==0.29.1 torch-fidelity==0.4.0 torchmetrics==1.9.0 prdc==0.2 \
        pytorch-fid==0.3.0 lpips==0.1.4 pytorch-msssim==1.0.0 clean-fid==0.1.35 "scipy<1.18" scikit-learn
    peers/bin/python tools/parity.py [--only kid,ssim]

One function per subject; it returns name -> numbers, made from tests/parity_inputs.py, whose seeds and sizes are in the
names of the cases below. tests/metrics/test_parity.py makes the same inputs and compares.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import parity_inputs as inputs  # noqa: E402

GOLDENS = ROOT / "tests" / "goldens" / "metrics.json"
PACKAGES = (
    "torch",
    "torchvision",
    "torch-fidelity",
    "torchmetrics",
    "prdc",
    "pytorch-fid",
    "lpips",
    "pytorch-msssim",
    "clean-fid",
    "numpy",
    "scipy",
    "scikit-learn",
    "mpmath",
)
Outputs = dict[str, Any]


def fid() -> Outputs:
    """Real and fake features of seeds 1 and 2: (n, d) = (3000, 64), and (50, 64), whose covariances are singular."""
    import torch
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    out: Outputs = {}
    for n in (3000, 50):
        real, fake = (inputs.features(seed, n, 64) for seed in (1, 2))
        moments = [(x.astype("float64").mean(0), np.cov(x.astype("float64"), rowvar=False)) for x in (real, fake)]
        out[f"pytorch-fid {n}"] = float(calculate_frechet_distance(*moments[1], *moments[0]))
        statistics = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (fake, real)]
        out[f"torch-fidelity {n}"] = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
        for x, is_real in ((real, True), (fake, False)):
            for batch in np.array_split(x, 3):
                metric.update(torch.from_numpy(batch).double(), real=is_real)
        out[f"torchmetrics {n}"] = float(metric.compute())
    return out


def exact_fid() -> Outputs:
    """FID of features of seeds 1 and 2, (n, d) = (100, 24) and (12, 24), by mpmath with 50 digits.

    With X = centred features / sqrt(n - 1), tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of G Gᵀ,
    G = X1 X2ᵀ; where d < n, of Lᵀ S2 L with S1 = L Lᵀ.
    """
    import mpmath

    mpmath.mp.dps = 50
    out: Outputs = {}
    for n in (100, 12):
        sets = [mpmath.matrix(inputs.features(seed, n, 24, "float64").tolist()) for seed in (1, 2)]
        means = [mpmath.ones(1, n) * x / n for x in sets]
        centred = [(x - mpmath.ones(n, 1) * m) / mpmath.sqrt(n - 1) for x, m in zip(sets, means, strict=True)]
        if n > 24:
            lower = mpmath.cholesky(centred[0].T * centred[0])
            product = lower.T * centred[1].T * centred[1] * lower
        else:
            across = centred[0] * centred[1].T
            product = across * across.T
        values = mpmath.eigsy(product, eigvals_only=True)
        root = sum(mpmath.sqrt(v) for v in values if v > mpmath.mpf(10) ** -40)
        traces = sum(mpmath.fsum(v**2 for v in x) for x in centred)
        out[f"mpmath {n}"] = float(mpmath.fsum(v**2 for v in means[0] - means[1]) + traces - 2 * root)
    return out


def kid() -> Outputs:
    """Features of seeds 1 (1500) and 2 (1200), d = 64; 20 subsets of 300; and all of 300 without a draw."""
    import torch
    from cleanfid.fid import kernel_distance
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    out: Outputs = {}
    real, fake = inputs.features(1, 1500, 64), inputs.features(2, 1200, 64)
    for dtype in ("float32", "float64"):
        result = kid_features_to_metric(
            *(torch.from_numpy(x.astype(dtype)) for x in (fake, real)),
            kid_subsets=20,
            kid_subset_size=300,
            verbose=False,
        )
        out[f"torch-fidelity {dtype}"] = list(map(float, result.values()))
    few = [x[:300].astype("float64") for x in (real, fake)]
    out["clean-fid all"] = float(kernel_distance(*few, num_subsets=1, max_subset_size=300))
    out["torchmetrics all"] = float(poly_mmd(*(torch.from_numpy(x) for x in few), 3, None, 1.0))
    return out


def inception_score() -> Outputs:
    """Logits of seed 3, [1003, 40]."""
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torchmetrics.image.inception import InceptionScore

    x = torch.from_numpy(inputs.logits(3, 1003, 40))
    result = isc_features_to_metric(x)
    whole = isc_features_to_metric(x, splits=1, shuffle=False)

    class Identity(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    metric = InceptionScore(feature=Identity(), splits=1)
    metric.update(x)
    return {
        "torch-fidelity": list(map(float, result.values())),
        "torch-fidelity whole": list(map(float, whole.values())),
        "torchmetrics whole": float(metric.compute()[0]),
    }


def neighbours() -> Outputs:
    """Features of seeds 1 (700) and 2 (600), d = 64."""
    import torch
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    out: Outputs = {}
    real, fake = inputs.features(1, 700, 64), inputs.features(2, 600, 64)
    for dtype in ("float32", "float64"):
        a, b = real.astype(dtype), fake.astype(dtype)
        for k in (3, 5):
            out[f"prdc {dtype} {k}"] = {name: float(v) for name, v in compute_prdc(a, b, k).items()}
            found = calculate_precision_recall_full(torch.from_numpy(b), torch.from_numpy(a), k)
            out[f"torch-fidelity {dtype} {k}"] = list(map(float, found))
    return out


def similarity() -> Outputs:
    """Images of seed 4 and, with seed 5, disturbed: three of 177 x 193."""
    import torch
    from pytorch_msssim import ms_ssim, ssim
    from torchmetrics.functional.image import peak_signal_noise_ratio

    clean = inputs.images(4, 3, 177, 193)
    x, y = (torch.from_numpy(v).double() for v in (inputs.disturbed(5, clean), clean))
    return {
        "pytorch-msssim ssim": ssim(x, y, data_range=255, size_average=False).tolist(),
        "pytorch-msssim ms-ssim": ms_ssim(x, y, data_range=255, size_average=False).tolist(),
        "torchmetrics psnr": peak_signal_noise_ratio(
            x, y, data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean"
        ).item(),
        "torchmetrics psnr pooled": peak_signal_noise_ratio(x, y, data_range=255.0).item(),
    }


def pixels() -> Outputs:
    """Label maps of seed 6: four of 50 x 50, 6 classes of which the last is absent."""
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    fake, real = (torch.from_numpy(v) for v in inputs.label_maps(6, 4, 50, 6))
    keep = real != 0
    return {
        "torchmetrics accuracy": multiclass_accuracy(fake, real, 6, average="micro").item(),
        "torchmetrics accuracy of class": multiclass_accuracy(fake, real, 6, average=None).tolist()[:5],
        "torchmetrics iou of class": multiclass_jaccard_index(fake, real, 6, average=None).tolist()[:5],
        "torchmetrics accuracy ignoring 0": (fake[keep] == real[keep]).double().mean().item(),
    }


def critic() -> Outputs:
    """Logits of seeds 8 and 9, 4000 of mean 1 (real) and of mean -0.5 (fake)."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

    real, fake = inputs.scores(8, 4000, 1.0), inputs.scores(9, 4000, -0.5)
    x = torch.from_numpy(np.concatenate((real, fake))).double()
    y = torch.cat((torch.ones(4000), torch.zeros(4000))).long()
    return {
        "torchmetrics auc": binary_auroc(x, y).item(),
        "torchmetrics calibration error": binary_calibration_error(x.sigmoid(), y, n_bins=15).item(),
    }


def paths() -> Outputs:
    """Points between latents of seeds 10 and 11, [5, 8], at 0.3: linear; spherical, of unit vectors."""
    import torch
    from torchmetrics.functional.image.perceptual_path_length import _interpolate

    a, b = (torch.from_numpy(inputs.generator(seed).standard_normal((5, 8))) for seed in (10, 11))
    return {
        "torchmetrics lerp": _interpolate(a, b, 0.3, "lerp").tolist(),
        "torchmetrics slerp": _interpolate(
            *(torch.nn.functional.normalize(v) for v in (a, b)), 0.3, "slerp_unit"
        ).tolist(),
    }


SUBJECTS: dict[str, Callable[[], Outputs]] = {
    "fid": fid,
    "exact_fid": exact_fid,
    "kid": kid,
    "inception_score": inception_score,
    "neighbours": neighbours,
    "similarity": similarity,
    "pixels": pixels,
    "critic": critic,
    "paths": paths,
}


def versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what the peers give on seeded inputs.")
    parser.add_argument("--only", default=",".join(SUBJECTS), help="subjects, with commas; others keep their goldens")
    parser.add_argument("--out", type=Path, default=GOLDENS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    stored: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.only.split(","):
        if name not in SUBJECTS:
            parser.error(f"subject {name!r} is unknown; expected some of {', '.join(SUBJECTS)}")
        stored[name] = {"outputs": SUBJECTS[name](), "versions": versions()}
        print(f"{name}: {len(stored[name]['outputs'])} outputs", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
