"""Simultaneous updates: both players move by gradients at the same point, and the critic's sweep gives both."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from host_reads import NoHostReads
from small import Batches, Pictures, game
from torch import Tensor, nn

from fastgan.contract import Draw, ImageShape
from fastgan.errors import UnsupportedCritic
from fastgan.gans import UnconditionalGAN
from fastgan.losses import LOSSES, RELATIVISTIC
from fastgan.optim import Averaging
from fastgan.penalty import critic_backward

F64 = torch.float64


class Normed(Pictures):
    """With batch normalisation in the critic, and no bias before it, whose gradient would be rounding alone."""

    def critic(self, image: ImageShape) -> nn.Module:
        layers = list(super().critic(image))  # type: ignore[call-overload]
        first = nn.Conv2d(image.channels, self.width, 4, 2, 1, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(self.width), *layers[1:])


GAMES: dict[str, UnconditionalGAN] = {
    "R1 + R2": UnconditionalGAN(Pictures(), latent=3, loss="relativistic", r1=0.7, r2=0.3),
    "lazy R1 + R2": UnconditionalGAN(Pictures(), latent=3, loss="relativistic", r1=0.7, r2=0.3, penalty_every=2),
    "R1": UnconditionalGAN(Pictures(), latent=3, loss="non_saturating", r1=0.7),
    "R2": UnconditionalGAN(Pictures(), latent=3, loss="least_squares", r2=0.7),
    "WGAN-GP": UnconditionalGAN(Pictures(), latent=3, loss="wasserstein", wgan_gp=10.0, critic_steps=2),
    "no penalty": UnconditionalGAN(Pictures(), latent=3, loss="hinge"),
    "coupled": UnconditionalGAN(Normed(), latent=3, loss="relativistic", r1=0.7, r2=0.3),
}


def squares(critic: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(critic(x).sum(), x, create_graph=True)[0].square().flatten(1).sum(1)


def plain_loop(system: UnconditionalGAN, g: nn.Module, d: nn.Module, data: Tensor, steps: int) -> None:
    """The simultaneous game by autograd: the generator's gradient is taken before the critic's last update."""
    loss = LOSSES[system.loss]
    d_adam, g_adam = (torch.optim.Adam(m.parameters(), lr=1e-2, betas=(0.5, 0.9)) for m in (d, g))
    number = 0
    for step in range(steps):
        strength = system.penalty_every if step % system.penalty_every == 0 else 0
        for turn in range(system.critic_steps):
            last = turn == system.critic_steps - 1
            index = torch.arange(8) + 8 * number
            number += 1
            # Streams count the turns of the list: the early critic turns first, and each phase of them.
            lazy = system.penalty_every > 1
            stream = (int(system.critic_steps > 1 and last)) * (1 + lazy) + int(lazy and not strength)
            draw = Draw(0, index, stream)
            real, fake = data[index % len(data)], g(draw.normal(3).double())
            # One call for loss and penalty, since batch normalisation counts its calls.
            x, y = real.clone().requires_grad_(), fake.detach().requires_grad_()
            at_real, at_fake = d(x), d(y)
            total = loss.critic(at_real, at_fake)
            for logits, at, gamma in ((at_real, x, system.r1), (at_fake, y, system.r2)):
                if gamma and strength:
                    (slope,) = torch.autograd.grad(logits.sum(), at, create_graph=True)
                    total = total + strength * gamma / 2 * slope.square().flatten(1).sum(1).mean()
            if system.wgan_gp:
                between = torch.lerp(y.detach(), real, draw.uniform().double().view(-1, 1, 1, 1))
                total = total + system.wgan_gp * (squares(d, between).sqrt() - 1).square().mean()
            if last:
                (slope,) = torch.autograd.grad(loss.generator(at_real.detach(), at_fake), y, retain_graph=True)
                g_grads = torch.autograd.grad(fake, list(g.parameters()), slope)
            d_adam.zero_grad()
            total.backward(inputs=list(d.parameters()))
            d_adam.step()
        for p, grad in zip(g.parameters(), g_grads, strict=True):
            p.grad = grad
        g_adam.step()


@pytest.mark.filterwarnings("ignore:.*differentiates Sequential by autograd")
@pytest.mark.parametrize("name", GAMES)
def test_equals_the_simultaneous_game_by_autograd(name: str) -> None:
    system = replace(GAMES[name], simultaneous=True)
    options = {"dtype": F64, "lr": 1e-2, "beta1": 0.5, "beta2": 0.9, "averaging": Averaging(0.05, rampup=0)}
    state, step = game(system, **options)  # type: ignore[arg-type]
    g, d = (copy.deepcopy(state.modules[player]) for player in ("generator", "critic"))
    data = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64) * 2 - 1
    batches = Batches(8, data)
    for _ in range(4):
        step(batches)
    plain_loop(system, g, d, data, 4)
    for player, wanted in (("generator", g), ("critic", d)):
        for key, value in wanted.state_dict().items():
            error = (state.modules[player].state_dict()[key] - value).double().norm()
            assert error / value.double().norm().clamp(min=1) < 1e-9, f"{player}.{key} differs by {error:.1e}"
    assert step.read_statistics()["skipped"] == 0
    other, alternating = game(replace(system, simultaneous=False), **options)  # type: ignore[arg-type]
    batches = Batches(8, data)
    for _ in range(4):
        alternating(batches)
    differences = [(a - b).norm() for a, b in zip(other.modules["generator"].parameters(), g.parameters(), strict=True)]
    assert max(differences) > 1e-4, "the option makes another algorithm"


def test_the_generators_turn_takes_no_pass_of_the_critic_and_no_host_read() -> None:
    state, step = game(replace(GAMES["lazy R1 + R2"], simultaneous=True), lr=1e-3)
    batches = Batches(8, torch.rand(64, 1, 8, 8) * 2 - 1)
    for _ in range(2):
        step(batches)
    calls: list[int] = []
    critic = state.modules["critic"]
    ready = [batches() for _ in range(2)]
    with NoHostReads():
        for _ in range(2):
            step(lambda: ready.pop(0))
    generator_turn = step.turns[-1]
    step.turns[0].gradients(batch := batches(), Draw(0, batch.index, 0))
    hook = critic.register_forward_hook(lambda *_: calls.append(1))
    values = generator_turn.gradients(batch, Draw(0, batch.index, 1))
    hook.remove()
    assert not calls
    assert values.keys() == {"loss"}
    assert all(p.grad is not None for p in state.players["generator"].params)


def test_fake_gradient_has_the_form_of_fake() -> None:
    """A tensor for a tensor, a tuple for a tuple, None for what is not floating point; a coupled critic is refused."""

    def critic(x: Tensor, codes: Tensor, y: Tensor) -> Tensor:
        return (x * weight).sum(1) + codes.double() + y.sum(1) * 2

    weight = torch.randn(3, dtype=F64, requires_grad=True)
    real, fake = ((torch.randn(4, 3, dtype=F64), torch.arange(4), torch.randn(4, 2, dtype=F64)) for _ in range(2))
    for method in ("sweep", "autograd"):
        result = critic_backward(
            critic, real, fake, RELATIVISTIC.critic, method=method, generator_loss=RELATIVISTIC.generator
        )
        assert isinstance(result.fake_gradient, tuple)
        x, codes, y = result.fake_gradient
        slope = -torch.sigmoid(result.real_logits - result.fake_logits)[:, None] / 4
        assert codes is None
        torch.testing.assert_close(x, slope * weight.detach())
        torch.testing.assert_close(y, slope * torch.full((4, 2), 2.0, dtype=F64))
    assert critic_backward(critic, real, fake, RELATIVISTIC.critic).fake_gradient is None
    coupled = Normed().critic(ImageShape(1, 8))
    images = torch.randn(4, 1, 8, 8)
    with pytest.raises(UnsupportedCritic, match="by the samples takes a pass of its own"):
        critic_backward(
            coupled, images, images, RELATIVISTIC.critic, method="sweep", generator_loss=RELATIVISTIC.generator
        )
