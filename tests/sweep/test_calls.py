"""How often the critic is called, with how many samples, and which random numbers are drawn when."""

from __future__ import annotations

import warnings

import pytest
import torch
from sweep.compare import images
from torch import Tensor, nn

from fastgan.losses import HINGE
from fastgan.penalty import critic_backward
from fastgan.sweep.capture import capture_of

REAL, FAKE = images(4, 1), images(4, 2)


class Watched(nn.Module):
    """[N, 3, 8, 8] -> [N, 1]. keep: stores features; count: counts calls; drop: has dropout; smooth: is refused."""

    def __init__(self, *, keep: bool = False, count: bool = False, drop: float = 0.0, smooth: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.GELU() if smooth else nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Dropout(drop)
        ).double()
        self.out = nn.Linear(8, 1).double()
        self.keep, self.count, self.calls = keep, count, 0
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).flatten(1)
        if self.keep:
            self.features = features
        if self.count:
            self.calls += 1
        return self.out(features)


def backward(critic: nn.Module, method: str, **penalties: float):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return critic_backward(critic, REAL, FAKE, HINGE.critic, method=method, **penalties)


@pytest.mark.parametrize("method", ["sweep", "auto", "autograd"])
def test_forward_hooks_see_two_batches(method: str):
    critic, sizes = Watched(), []
    critic.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    for _ in range(3):
        backward(critic, method, r1=1.0, r2=1.0)
    assert sizes == [4] * 6


@pytest.mark.parametrize("method", ["sweep", "autograd"])
def test_counters_count_two_calls(method: str):
    critic = Watched(count=True)
    for _ in range(3):
        backward(critic, method, r1=1.0, r2=1.0)
    assert critic.calls == 6


def test_stored_features_are_those_of_the_last_batch():
    critic = Watched(keep=True)
    backward(critic, "sweep", r1=1.0, r2=1.0)
    assert critic.features is not None
    torch.testing.assert_close(critic.features, critic.body(FAKE).flatten(1))


@pytest.mark.parametrize("method", ["sweep", "auto"])
@pytest.mark.parametrize("options", [{"drop": 0.5}, {"smooth": True}, {}], ids=str)
def test_interpolates_are_drawn_as_by_autograd(options: dict, method: str):
    if method == "sweep" and "smooth" in options:
        pytest.skip("refused")
    results = {}
    for way in (method, "autograd"):
        critic = Watched(**options)
        backward(critic, way, wgan_gp=1.0)  # the capture
        critic.zero_grad()
        torch.manual_seed(7)
        results[way] = backward(critic, way, wgan_gp=1.0), torch.rand(1), [p.grad for p in critic.parameters()]
    (given, after, grads), (wanted, wanted_after, wanted_grads) = results[method], results["autograd"]
    torch.testing.assert_close(given.wgan_gp, wanted.wgan_gp, rtol=1e-12, atol=0)
    torch.testing.assert_close(given.loss, wanted.loss, rtol=1e-12, atol=0)
    assert torch.equal(after, wanted_after)
    for one, other in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_failing_captures_become_rare():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3 * 64, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.flatten(1)) if x.sum() > 1e9 else self.out(x.flatten(1)) * 2

    critic = Branching()
    assert {backward(critic, "auto", r1=1.0).method for _ in range(40)} == {"autograd"}
    assert capture_of(critic).failures == 5  # at call 0, 3, 8, 17, 34
    with pytest.raises(ValueError, match="cannot be captured"):
        backward(critic, "sweep", r1=1.0)


def test_a_critic_that_becomes_supported_is_swept_again():
    critic = Watched()
    critic.body[1] = nn.GELU()
    assert backward(critic, "auto", r1=1.0).method == "autograd"
    critic.body[1] = nn.ReLU()
    assert "sweep" in [backward(critic, "auto", r1=1.0).method for _ in range(4)]
    assert backward(critic, "auto", r1=1.0).method == "sweep"


def test_padding_that_leaves_the_batch_alone():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 10).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(nn.functional.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])).flatten(1)

    assert backward(Padded(), "sweep", r1=1.0, r2=1.0).method == "sweep"
