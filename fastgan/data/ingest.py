"""uint8 pixels to what networks take: mirrored where a coin says so, (x - 127.5) / 127.5, channels-last."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgan.data.image_set import Pixels


def ingest(pixels: Tensor, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """pixels [N, H, W, C] uint8, flip [N] uint8 (0 or 1) or None -> [N, C, H, W] channels-last, computed in float32."""
    images = pixels.to(torch.float32).sub_(127.5).div_(127.5)
    if flip is not None:
        images = torch.where(flip.bool()[:, None, None, None], images.flip(2), images)
    return images.to(dtype).permute(0, 3, 1, 2)


def ingest_on_host(pixels: Pixels, flip: NDArray[np.bool_] | None, out: NDArray[Any]) -> None:
    """The same into `out` [N, H, W, C] float32, by NumPy; changes `pixels`.

    For the thread of the feeder: a second thread with torch operations would start a second pool of OpenMP threads.
    """
    if flip is not None:
        whole = pixels.view(f"V{pixels.shape[-1]}")  # a pixel as one item: a third of the time
        whole[flip] = whole[flip][:, :, ::-1]
    np.subtract(pixels, np.float32(127.5), out=out, dtype=np.float32)
    np.divide(out, np.float32(127.5), out=out)
