"""Convolutions by minimal filtering in the passes of the sweep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan.kernels import winograd
from fastgan.kernels._runtime import EXTENSION
from fastgan.losses import RELATIVISTIC
from fastgan.penalty import critic_backward

here = EXTENSION.module is not None and EXTENSION.module.winograd_here()
pytestmark = pytest.mark.skipif(not here, reason=f"no native part, or no AVX2: {EXTENSION.cpu}")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("penalties", [{"r1": 1.0, "r2": 1.0}, {"wgan_gp": 1.0}], ids=str)
def test_they_are_used_and_agree_with_autograd(
    penalties: dict[str, float], transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    middle = [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.LeakyReLU(0.2)] if transposed else []
    critic = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2), *middle,
        nn.Conv2d(32 if transposed else 64, 32, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 3, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for layer in critic:  # far from where slopes change: there a rounding error of 1e-7 changes a gradient by 1e-3
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None:
            layer.bias.data = 3.0 * (-1.0) ** torch.arange(len(layer.bias))
    real, fake, epsilon = torch.randn(8, 3, 64, 64), torch.randn(8, 3, 64, 64), torch.rand(8)
    ways: list[int] = []
    original = winograd._run
    monkeypatch.setattr(
        winograd, "_run", lambda how, tile, way, *maps: (ways.append(way), original(how, tile, way, *maps))
    )
    critic_backward(critic, real, fake, RELATIVISTIC.critic, method="sweep", epsilon=epsilon, **penalties)
    assert set(ways) == set(winograd.WAYS)
    ours = _gradients(critic)
    critic_backward(critic, real, fake, RELATIVISTIC.critic, method="autograd", epsilon=epsilon, **penalties)
    theirs, exact = _gradients(critic), critic.double()
    real, fake, epsilon = (each.double() for each in (real, fake, epsilon))
    critic_backward(exact, real, fake, RELATIVISTIC.critic, method="autograd", epsilon=epsilon, **penalties)
    wanted = _gradients(exact)
    largest = max(each.norm() for each in wanted)
    for mine, library, true in zip(ours, theirs, wanted, strict=True):
        assert (mine - true).norm() < 2 * (library - true).norm() + 1e-5 * largest


def _gradients(critic: nn.Module) -> list[torch.Tensor]:
    """Taken away, as float64."""
    made = [parameter.grad.double() for parameter in critic.parameters() if parameter.grad is not None]
    critic.zero_grad()
    return made
