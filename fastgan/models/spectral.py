"""Spectral normalisation: W / sigma(W), by one step of the power iteration per forward pass in training.

Algorithm 1 of Miyato et al. 2018 (arXiv:1802.05957), with W as a matrix [out, rest]:

    v <- W^T u / |W^T u|,   u <- W v / |W v|,   sigma = u^T W v   (u and v are constants to the gradient)

torch.nn.utils.parametrizations.spectral_norm flattens W in the order of its dimensions, which copies a channels-last
weight several times a step. The singular value does not depend on the order of the columns, so here they come in the
order of memory, [out, height, width, in], and v with them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

EPS = 1e-12
FIRST_STEPS = 15  # of the power iteration, when the layer is made


class SpectralNorm(nn.Module):
    """weight [out, in] or [out, in, height, width] -> the same over its largest singular value.

    Buffers as in torch: _u [out], _v [rest], whose order is that of [out, height, width, in] here.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = _matrix(weight.detach())
        self.register_buffer("_u", normalize(torch.randn_like(rows[:, 0]), dim=0, eps=EPS))
        self.register_buffer("_v", normalize(torch.randn_like(rows[0]), dim=0, eps=EPS))
        for _ in range(FIRST_STEPS):
            self._iterate(rows)

    @torch.no_grad()
    def _iterate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One step; returns the vectors as tensors of their own, which later steps leave to autograd as they are."""
        v = normalize(rows.mT @ self._u, dim=0, eps=EPS)
        u = normalize(rows @ v, dim=0, eps=EPS)
        self._u.copy_(u)
        self._v.copy_(v)
        return u, v

    def forward(self, weight: Tensor) -> Tensor:
        rows = _matrix(weight)
        u, v = self._iterate(rows.detach()) if self.training else (self._u.clone(), self._v.clone())
        return weight / torch.dot(u, rows @ v)

    def right_inverse(self, value: Tensor) -> Tensor:
        """What is assigned to the layer's weight is taken for the weight before normalisation."""
        return value


def _matrix(weight: Tensor) -> Tensor:
    """[out, rest], a view of a channels-last weight."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight.flatten(1)


def spectral_norm(layer: nn.Conv2d | nn.Linear) -> None:
    """Normalise the layer's weight from now on."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
