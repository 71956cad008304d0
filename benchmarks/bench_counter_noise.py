"""counter_noise: normal numbers as a pure function of (seed, sample, element), against torch.randn.

torch.randn does less: its numbers depend on what was drawn before, and differ between CPU and GPU. The ratio
is the price of exact resume.
"""

from __future__ import annotations

import pytest
import torch

from fastgan.kernels import counter_noise


@pytest.mark.parametrize(("case", "size"), [("latents", (128,)), ("noise images", (3, 64, 64))])
def test_normal(case, size, ratio, device):
    index = torch.arange(64, device=device)
    noise = counter_noise.normal(1, index, size)
    assert torch.equal(noise[10:20], counter_noise.normal(1, index[10:20], size)), "depends on the batch"
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5, "mean is not 0"
    assert (noise.std() - 1).abs() < 5 / (2 * noise.numel()) ** 0.5, "standard deviation is not 1"
    ratio(
        "counter_noise",
        f"{case}, {list(noise.shape)}",
        {
            "fastgan normal": lambda: counter_noise.normal(1, index, size),
            "torch.randn": lambda: torch.randn(64, *size, device=device),
        },
        ours="fastgan normal",
        bytes=noise.nbytes,
    )
