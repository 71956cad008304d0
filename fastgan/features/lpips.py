"""LPIPS, the learned perceptual distance of image pairs (Zhang et al. 2018, arXiv:1801.03924), version 0.1.

    d(a, b) = sum over layers l of  mean over pixels of  sum over channels c of  w_lc (a_lc - b_lc)²

where a_l are the trunk's activations, of length 1 at each pixel. The five `lin` heads hold the weights w.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.features import vgg16
from fastgan.features.layers import filled, ready, tensor_of

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # the scaling layer, for images in [-1, 1]
EPSILON = 1e-10  # joins the length, not its square
ALEX_LAYERS, ALEX_CHANNELS = (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)


def alex_trunk() -> nn.Sequential:
    """AlexNet's convolutions (Krizhevsky 2014, arXiv:1404.5997), numbered as torchvision's `features`."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(inplace=True)),
    )


class LPIPS(nn.Module):
    """a, b: [N, 3, H, W] float in [-1, 1] -> distances [N].

    Differentiable in the images. Greyscale images [N, 1, H, W] count as RGB with three equal channels.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, layers: tuple[int, ...], heads: list[Tensor]) -> None:
        super().__init__()
        self.features, self.layers = features, layers
        dtype = heads[0].dtype
        self.register_buffer("shift", torch.tensor(SHIFT, dtype=dtype).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE, dtype=dtype).view(1, 3, 1, 1))
        for number, head in enumerate(heads):
            self.register_buffer(f"lin{number}", head.reshape(1, -1, 1, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape or a.dim() != 4 or a.shape[1] not in (1, 3) or not a.is_floating_point():
            raise FastganError(
                "LPIPS: expected two float tensors [N, 3, H, W] of the same shape, in [-1, 1]; got "
                f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
            )
        total = torch.zeros(len(a), dtype=a.dtype, device=a.device)
        for number, (x, y) in enumerate(zip(self.maps(a), self.maps(b), strict=True)):
            weighted = (x - y).square().mul(getattr(self, f"lin{number}"))
            total = total + weighted.sum(1).mean((1, 2))
        return total

    def maps(self, images: Tensor) -> list[Tensor]:
        """Activations of the five layers, [N, C_l, H_l, W_l], each of length 1 at each pixel."""
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        out = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.layers:
                # The next layer may work in place, on what was divided already: a copy is what is kept.
                out.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPSILON))
        return out


def load_lpips(trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor], net: str, sources: tuple[str, str]) -> LPIPS:
    """LPIPS on the trunk "alex" or "vgg", with torchvision's weights and the heads lin0 to lin4 of version 0.1.

    sources: what messages call the two files. Raises FastganError for tensors that do not fit.
    """
    if net not in ("alex", "vgg"):
        raise FastganError(f"LPIPS: expected the trunk 'alex' or 'vgg', got {net!r}")
    with torch.device("meta"):
        network = alex_trunk() if net == "alex" else nn.Sequential(*list(vgg16.trunk())[: vgg16.LAYERS[-1] + 1])
    kept = {name.removeprefix("features."): value for name, value in trunk.items() if name.startswith("features.")}
    layers, channels = (ALEX_LAYERS, ALEX_CHANNELS) if net == "alex" else (vgg16.LAYERS, vgg16.CHANNELS)
    lins = [tensor_of(heads, f"lin{i}.model.1.weight", [1, c, 1, 1], sources[1]) for i, c in enumerate(channels)]
    return ready(LPIPS(filled(network, kept, sources[0]), layers, lins))
