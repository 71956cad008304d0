"""Structural similarity (SSIM: Wang et al. 2004) and its multi-scale form (MS-SSIM: Wang et al. 2003), per image.

With Gaussian-weighted means, variances and covariance of each window,

    luminance = (2 m_x m_y + C1) / (m_x² + m_y² + C1)       structure = (2 s_xy + C2) / (s_x² + s_y² + C2)
    SSIM = mean(luminance · structure)      MS-SSIM = prod_j mean(structure_j)^w_j, with luminance in the last factor

where C_i = (K_i L)², L the range of the pixels; windows lie wholly within the image; scales halve by 2x2 means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import FastganError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first


@dataclass(frozen=True)
class SsimProtocol:
    """Conventions as in pytorch-msssim; channels: the score is the mean over them."""

    data_range: float
    window: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    scales: tuple[float, ...] = ()  # weights of MS-SSIM
    padding: str = "none"
    negative: str = "kept"
    reduction: str = "mean over channels, then images"


def ssim_of_pairs(x: Tensor, y: Tensor, protocol: SsimProtocol) -> Tensor:
    """x, y: [N, C, H, W] floats. [N] fp64, SSIM where protocol.scales is empty, else MS-SSIM."""
    x, y = x.double(), y.double()
    shortest, levels = min(x.shape[-2:]), max(1, len(protocol.scales))
    least = (protocol.window - 1) * 2 ** (levels - 1) + 1
    if shortest < least:
        raise FastganError(
            f"{'ms-ssim' if levels > 1 else 'ssim'}: expected images of {least} pixels or more on each side, "
            f"got {list(x.shape[-2:])}; use larger images or a smaller window"
        )
    if not protocol.scales:
        return windows(x, y, protocol)[0].mean(1)
    score = x.new_ones(x.shape[:2])
    for level, weight in enumerate(protocol.scales):
        whole, structure = windows(x, y, protocol)
        last = level == levels - 1
        score = score * (whole if last else structure).clamp_min(0) ** weight
        if not last:
            x, y = halved(x), halved(y)
    return score.mean(1)


def windows(x: Tensor, y: Tensor, protocol: SsimProtocol) -> tuple[Tensor, Tensor]:
    """(SSIM, structure) [N, C]: means over all windows."""
    c1, c2 = ((k * protocol.data_range) ** 2 for k in (protocol.k1, protocol.k2))
    channels = x.shape[1]
    stacked = torch.cat((x, y, x * x, y * y, x * y), 1)
    mx, my, xx, yy, xy = torch.split(blurred(stacked, protocol), channels, 1)
    structure = (2 * (xy - mx * my) + c2) / ((xx - mx * mx) + (yy - my * my) + c2)
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def blurred(x: Tensor, protocol: SsimProtocol) -> Tensor:
    """Gaussian means of all windows, [N, C, H - w + 1, W - w + 1]."""
    at = torch.arange(protocol.window, dtype=x.dtype, device=x.device) - protocol.window // 2
    gauss = torch.exp(-at.square() / (2 * protocol.sigma**2))
    gauss = (gauss / gauss.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(x, gauss[..., None], groups=x.shape[1])
    return F.conv2d(x, gauss[..., None, :], groups=x.shape[1])


def halved(x: Tensor) -> Tensor:
    """2x2 means; at an odd side with a zero before the first pixel, counted, as pytorch-msssim does."""
    return F.avg_pool2d(x, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2))
