"""Critics that call fastgan's own ops: the sweep sees them as PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgan import losses
from fastgan.kernels.batch_norm_act import Norm, bias_act
from fastgan.kernels.conv_transpose_bn_act import conv_transpose
from fastgan.kernels.masked_act import masked_act
from fastgan.penalty import critic_backward


class Critic(nn.Module):
    """x [N, 3, 8, 8] -> [N, 1], with `op(y, vector)` on y [N, 8, 6, 6]."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op
        self.conv, self.linear = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 1)
        self.vector, self.kernel = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.op(self.conv(x), self.vector).mean((2, 3)))
        return logits


def up(y: Tensor, vector: Tensor) -> Tensor:
    weight = torch.outer(vector, vector)[:, :, None, None].expand(-1, -1, 4, 4)
    geometry = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "dilation": (1, 1)}
    norm = Norm(bias=vector, act=2, slope=0.1, training=False)
    return conv_transpose(y, weight, vector, norm=norm, act_out="relu", **geometry)[0]


@pytest.mark.parametrize(
    "op",
    [
        lambda y, b: masked_act(y, 0.2, b)[0],
        lambda y, b: bias_act(y, b, "leaky_relu", 0.2),
        lambda y, b: bias_act(y, b, "relu"),
        up,
    ],
)
def test_swept_as_autograd_differentiates(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    critic = Critic(op).double()
    real, fake = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for method in ("autograd", "sweep"):
        critic.zero_grad()
        critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0, r2=0.5, method=method)
        gradients.append([p.grad.clone() for p in critic.parameters() if p.grad is not None])
    assert len(gradients[0]) == 4
    for theirs, ours in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
