"""ingest: stored bytes to what a network reads, against NumPy, PyTorch's operations and copying the result once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgan.kernels import ingest


@pytest.mark.parametrize(("case", "dtype"), [("batch of 64x64", torch.float32), ("batch of 64x64", torch.bfloat16)])
@pytest.mark.parametrize("flip", [False, True])
def test_ingest(case, dtype, flip, ratio, device):
    pixels = torch.randint(0, 256, ingest.CASES[case], dtype=torch.uint8, device=device)
    flips = torch.arange(pixels.shape[0], device=device) % 2 == 0 if flip else None
    made = ingest.ingest(pixels, flips, dtype)
    assert torch.equal(made, ingest.reference(pixels, flips, dtype)), "differs from the reference"

    def numpy():
        raw = pixels.numpy()
        if flip:
            raw, chosen = raw.copy(), flips.numpy()
            raw[chosen] = raw[chosen][:, :, ::-1]
        values = np.subtract(raw, np.float32(127.5), dtype=np.float32)
        np.divide(values, np.float32(127.5), out=values)
        return torch.from_numpy(values).to(dtype).permute(0, 3, 1, 2)

    rivals = {"fastgan": lambda: ingest.ingest(pixels, flips, dtype)}
    rivals |= {"NumPy": numpy} if device == "cpu" else {}
    rivals |= {"PyTorch": lambda: ingest.reference(pixels, flips, dtype), "copy of the result": made.clone}
    name = f"{case}, {str(dtype).removeprefix('torch.')}{', half flipped' if flip else ''}"
    ratio("ingest", name, rivals, ours="fastgan", bytes=pixels.nbytes + made.nbytes)
