r"""Images as they are stored to images as networks take them: normalised, flipped, in the type of the network.

    out[n, c, h, w] = (pixels[n, h, w', c] - 127.5) / 127.5,    w' = W - 1 - w where flip[n], else w

computed in float32, rounded to the type of `out`, and laid out channels-last, as the pixels are: one pass that reads a
byte and writes one value. Subtraction and division are correctly rounded, so that every device gives the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose, disable, register

# [N, H, W, C] that test and benchmark share
CASES: dict[str, tuple[int, int, int, int]] = {
    "batch of 64x64": (64, 64, 64, 3),
    "256x256": (2, 256, 256, 3),
    "grey": (5, 28, 28, 1),
    "odd sizes": (3, 5, 7, 3),
    "two channels": (2, 3, 9, 2),
    "four channels": (4, 6, 33, 4),
    "many channels": (2, 2, 3, 1601),
    "wider than a tile": (2, 1, 1700, 1),
    "one pixel": (3, 1, 1, 3),
    "no samples": (0, 8, 8, 3),
    "no rows": (2, 0, 8, 3),
}

# As IngestType in csrc/ingest.h
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def ingest(pixels: Tensor, flip: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images [N, C, H, W] in [-1, 1], channels-last, of `pixels` [N, H, W, C] uint8, on their device.

    flip: [N] bool, which images to flip left to right; None for none of them
    dtype: float32, bfloat16, float16, or float64, which is the float32 values
    Raises FastganError.
    """
    _check(pixels, flip)
    if dtype == torch.float64:
        return ingest(pixels, flip).to(dtype)
    if dtype not in TYPES:
        raise FastganError(f"ingest: expected float32, bfloat16, float16 or float64, got {dtype}")
    made: Tensor = _op(pixels, flip, dtype)
    return made


def ingest_into(out: Tensor, pixels: Tensor, flip: Tensor | None = None, *, threads: int = 1) -> None:
    """Writes `pixels` [N, H, W, C] into `out` [N, H, W, C] of a type in TYPES, both contiguous and on the CPU.

    For a thread beside the main one: no operation of torch, which would start a second pool of OpenMP threads there,
    unless there is no native part and the type is not float32.
    """
    _check(pixels, flip)
    assert out.dtype in TYPES
    assert out.shape == pixels.shape
    assert all(t is None or t.is_contiguous() for t in (out, pixels, flip))
    if choose("ingest", pixels.device).native:
        EXTENSION.module.ingest_cpu(_arguments(pixels, flip, out), TYPES[out.dtype], threads)
        return
    target, raw = np.empty(out.shape, np.float32) if out.dtype != torch.float32 else out.numpy(), pixels.numpy()
    np.subtract(raw, np.float32(127.5), out=target, dtype=np.float32)
    np.divide(target, np.float32(127.5), out=target)
    if flip is not None:
        flipped = flip.numpy()
        target[flipped] = target[flipped][:, :, ::-1]
    if out.dtype != torch.float32:
        out.copy_(torch.from_numpy(target))


def reference(pixels: Tensor, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The op in PyTorch. Same arguments as ingest()."""
    pixels = pixels.contiguous()
    if flip is not None:
        pixels = torch.where(flip[:, None, None, None], pixels.flip(2), pixels)
    # Not a Python number: on a GPU torch multiplies with its reciprocal instead, which differs in last bits.
    half = torch.full((), 127.5, device=pixels.device)
    return pixels.to(torch.float32).sub_(half).div_(half).to(dtype).permute(0, 3, 1, 2)


# ---- the op


def _ingest(pixels: Tensor, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    choice = choose("ingest", pixels.device)
    if not choice.native:
        return reference(pixels, flip, dtype)
    pixels, flip = pixels.contiguous(), flip if flip is None else flip.contiguous()
    out = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    arguments = _arguments(pixels, flip, out)
    if pixels.device.type == "cpu":
        EXTENSION.module.ingest_cpu(arguments, TYPES[dtype], torch.get_num_threads())
        return out.permute(0, 3, 1, 2)
    queue = torch.cuda.current_stream(pixels.device).cuda_stream
    status = EXTENSION.module.ingest_cuda(arguments, TYPES[dtype], pixels.device.index, queue)
    if status != 0:
        disable("ingest", pixels.device, status)
        return reference(pixels, flip, dtype)
    return out.permute(0, 3, 1, 2)


def _arguments(pixels: Tensor, flip: Tensor | None, out: Tensor) -> object:
    address = 0 if flip is None else flip.data_ptr()
    return EXTENSION.module.Ingest(pixels.data_ptr(), address, list(pixels.shape), out.data_ptr())


def _fake(pixels: Tensor, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    return pixels.new_empty(pixels.shape, dtype=dtype).permute(0, 3, 1, 2)


def _check(pixels: Tensor, flip: Tensor | None) -> None:
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        raise FastganError(
            f"ingest: expected `pixels` as a uint8 tensor [N, H, W, C], got {pixels.dtype} {tuple(pixels.shape)}"
        )
    if flip is None:
        return
    if flip.dtype != torch.bool or flip.shape != pixels.shape[:1] or flip.device != pixels.device:
        raise FastganError(
            f"ingest: expected `flip` as a bool tensor [{pixels.shape[0]}] on {pixels.device}, "
            f"got {flip.dtype} {tuple(flip.shape)} on {flip.device}"
        )


_op = register("ingest(Tensor pixels, Tensor? flip, ScalarType dtype) -> Tensor", _ingest, fake=_fake)
