"""The critics of all systems go through the shared sweep, and their gradients are those of double backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan.contract import ImageShape
from fastgan.gans import VAEGAN, AuxiliaryGAN, ConditionalGAN, InferenceGAN, MixtureGAN
from fastgan.gans.classifying import Verdict
from fastgan.losses import LOSSES
from fastgan.models import DCGAN, Dense
from fastgan.penalty import critic_backward

IMAGE = ImageShape(2, 16, classes=3)
DENSE = Dense(critic_stem=4, critic_layers=(8, 6), generator_layers=(6,), generator_width=4)
CONVOLUTIONS = DCGAN(critic_norm="none", critic_width=4, generator_width=4)
SYSTEMS: dict[str, Any] = {
    "projection": ConditionalGAN(DENSE),
    "concatenation": ConditionalGAN(CONVOLUTIONS, labels="concatenation", label_width=3),
    "auxiliary": AuxiliaryGAN(CONVOLUTIONS),
    "bigan": InferenceGAN(DENSE, latent=5, joint_width=7),
    "mixture": MixtureGAN(DENSE, heads=2, latent=5),
    "vae-gan": VAEGAN(DENSE, features=6),
}


QUICK = ("projection", "bigan")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in SYSTEMS])
def test_the_sweep_is_exact(name: str) -> None:
    torch.manual_seed(0)
    system = SYSTEMS[name]
    critic: nn.Module = system.players(IMAGE)["critic"].double()
    if name in ("auxiliary", "mixture"):
        critic = Verdict(critic)
    reals, fakes, z, epsilon = (torch.randn(4, *s, dtype=torch.float64) for s in ((2, 16, 16), (2, 16, 16), (5,), ()))
    real, fake = ((reals, z), (fakes, -z)) if name == "bigan" else (reals, fakes)
    labels = torch.tensor([0, 2, 1, 2])
    given = {"real_labels": labels, "fake_labels": labels} if name in ("projection", "concatenation") else {}
    found = {}
    for method in ("sweep", "autograd"):
        critic.zero_grad(set_to_none=True)
        result = critic_backward(
            critic, real, fake, LOSSES["relativistic"].critic, r1=1.5, r2=0.5, wgan_gp=2.0, epsilon=epsilon.sigmoid(),
            method=method, **given
        )  # fmt: skip
        assert result.method == method
        found[method] = {key: p.grad.clone() for key, p in critic.named_parameters() if p.grad is not None}
    assert found["sweep"].keys() == found["autograd"].keys()
    scale = max(float(gradient.norm()) for gradient in found["autograd"].values())
    for key, gradient in found["autograd"].items():
        difference: Tensor = (found["sweep"][key] - gradient).norm()
        assert difference < 1e-10 * scale, key
