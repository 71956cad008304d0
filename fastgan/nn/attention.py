"""Self-attention over the pixels of feature maps (Zhang et al. 2019, SAGAN, arXiv:1805.08318, section 3)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


class SelfAttention2d(nn.Module):
    """x [N, C, H, W] -> the same: x + gamma v(sum_i beta_ji h(x_i)), with beta_j = softmax_i(f(x_i) . g(x_j)).

    f, g, h: 1x1 convolutions to C/8 channels (at least one), v back to C; gamma starts at 0. The products are not
    divided by a root of the width, as in the paper.
    twice: it will be differentiated twice, as a critic with a gradient penalty is: torch's plain attention, which has a
        second derivative; else whichever of torch's is the fastest here.
    """

    def __init__(self, channels: int, *, twice: bool = False) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.keys, self.queries, self.values = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        q, k, v = (_rows(layer(x)) for layer in (self.queries, self.keys, self.values))
        with sdpa_kernel(SDPBackend.MATH) if self.twice else nullcontext():
            seen = scaled_dot_product_attention(q, k, v, scale=1.0)
        image = seen.view(n, height, width, -1).permute(0, 3, 1, 2)
        return torch.addcmul(x, self.gamma.to(x.dtype), self.out(image))


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N, 1, H W, C]: one head, a row per pixel; a view of a channels-last tensor."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)[:, None]
