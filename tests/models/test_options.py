"""Options of the network families: self-attention, multi-scale networks, a normalising flow as prior."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small import Batches, Plane, game, ring, ring_cover
from small_presets import batch_of, narrow, step_of
from torch import Tensor

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.gans import UnconditionalGAN
from fastgan.losses import WASSERSTEIN
from fastgan.models import DCGAN, ResNet
from fastgan.models.flow import RealNVP, WithPrior
from fastgan.models.msg_gan import MultiScaleCritic, MultiScaleGenerator, halvings
from fastgan.nn import SelfAttention2d
from fastgan.optim import Averaging
from fastgan.penalty import UnsupportedCritic, critic_backward
from fastgan.pictures import picture_latents, sample_images
from fastgan.schedule import Schedule

IMAGE = ImageShape(3, 16)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with no parameter at 0: nothing is hidden behind it."""
    torch.manual_seed(0)
    for p in module.double().parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return module


# ---- self-attention


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("twice", [False, True])
def test_attention_by_the_papers_sums(layout: torch.memory_format, twice: bool) -> None:
    """Zhang et al. 2019, equations 1 to 3, pixel by pixel."""
    layer = shuffled(SelfAttention2d(16, twice=twice))
    x = random(2, 16, 3, 4).contiguous(memory_format=layout)
    f, g, h, v = (m.weight[:, :, 0, 0] for m in (layer.keys, layer.queries, layer.values, layer.out))
    assert f.shape == g.shape == h.shape == (2, 16)
    for n in range(2):
        pixels = x[n].flatten(1)  # [C, 12]
        s = (f @ pixels).mT @ (g @ pixels)  # s_ij
        beta = s.softmax(0)
        o = v @ (h @ pixels @ beta)
        torch.testing.assert_close(layer(x)[n], (pixels + layer.gamma * o).view(16, 3, 4))


def test_attention_is_differentiated_twice_where_it_is_asked_for() -> None:
    layer, x = shuffled(SelfAttention2d(8, twice=True)), random(2, 8, 3, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("networks", [DCGAN(8, 8, attention=8, critic_norm="none"), ResNet(8, 8, 8, 8, attention=8)])
def test_attention_stands_at_its_resolution_in_both_networks(networks: DCGAN | ResNet) -> None:
    image = ImageShape(3, 32)
    seen: list[tuple[int, ...]] = []
    for network, inputs in (
        (networks.generator(image, 5), torch.randn(2, 5)),
        (networks.critic(image), torch.zeros(2, 3, 32, 32)),
    ):
        (layer,) = (m for m in network.modules() if isinstance(m, SelfAttention2d))
        layer.register_forward_hook(lambda module, given, out: seen.append(tuple(given[0].shape[2:])))
        layer.gamma.data.fill_(0.5)
        network(inputs).square().sum().backward()
        assert layer.gamma.grad is not None
    assert seen == [(8, 8), (8, 8)]


def test_a_critic_with_attention_is_refused_by_the_sweep_and_taken_by_autograd() -> None:
    critic = DCGAN(8, 8, attention=8, critic_norm="none").critic(IMAGE)
    real, fake = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    with pytest.raises(UnsupportedCritic, match="not piecewise linear"):
        critic_backward(critic, real, fake, WASSERSTEIN.critic, r1=1.0, method="sweep")
    with pytest.warns(RuntimeWarning, match="not piecewise linear"):
        assert critic_backward(critic, real, fake, WASSERSTEIN.critic, r1=1.0).method == "autograd"


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (DCGAN(attention=16), "DCGAN: attention must be 0 or one of the resolutions 4, 8, got 16"),
        (DCGAN(attention=5), "DCGAN: attention must be 0 or one of the resolutions 4, 8, got 5"),
        (ResNet(attention=4), "ResNet: attention must be 0 or one of the resolutions 8, 16, got 4"),
    ],
)
def test_attention_where_there_is_no_such_resolution(networks: DCGAN | ResNet, message: str) -> None:
    image = ImageShape(3, 32) if isinstance(networks, ResNet) else IMAGE
    with pytest.raises(FastganError) as error:
        networks.generator(image, 8)
    assert str(error.value) == message


# ---- multi-scale


def test_multi_scale_networks_see_every_resolution() -> None:
    networks = DCGAN(4, 4, multi_scale=True, critic_norm="none")
    generator, critic = networks.generator(IMAGE, 5), networks.critic(IMAGE)
    assert isinstance(generator, MultiScaleGenerator)
    assert isinstance(critic, MultiScaleCritic)
    images = generator.scales(torch.randn(3, 5))
    assert [tuple(i.shape) for i in images] == [(3, 3, s, s) for s in (16, 8, 4)]
    generator.eval()
    z = torch.randn(2, 5)
    torch.testing.assert_close(generator(z), generator.scales(z)[0])
    leaves = [i.detach().requires_grad_() for i in images]
    critic(*leaves).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    torch.testing.assert_close(critic(images[0]), critic(*halvings(images[0], 3)))


def test_halvings_are_means_of_squares() -> None:
    x = random(2, 3, 8, 8)
    large, half, quarter = halvings(x, 3)
    assert large is x
    torch.testing.assert_close(half[:, :, 1, 2], x[:, :, 2:4, 4:6].mean((2, 3)))
    torch.testing.assert_close(quarter[:, :, 0, 1], x[:, :, :4, 4:].mean((2, 3)))


def test_a_multi_scale_critic_goes_through_the_sweep_exactly() -> None:
    critic = shuffled(DCGAN(4, 4, multi_scale=True, critic_norm="none").critic(IMAGE))
    real, fake = (halvings(random(3, 3, 16, 16, seed=s), 3) for s in (1, 2))
    gradients = []
    for method in ("sweep", "autograd"):
        critic.zero_grad()
        assert critic_backward(critic, real, fake, WASSERSTEIN.critic, r1=0.7, method=method).method == method
        gradients.append([p.grad.clone() for p in critic.parameters()])
    for swept, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(swept, exact, rtol=1e-9, atol=1e-9)


LEARNERS = [
    pytest.param({"multi_scale": True}, id="multi-scale"),
    pytest.param({"attention": 8}, id="attention", marks=pytest.mark.long),
]


@pytest.mark.parametrize("options", LEARNERS)
def test_dcgan_with_an_option_learns_where_the_light_is(options: dict[str, object]) -> None:
    """Images 16x16 that are bright on the left or on the right: so are its own, of both kinds, after 150 steps."""
    config = narrow("dcgan-64", batch=16, loss="relativistic", r1=0.1, r2=0.1)
    networks = replace(config.system.networks, critic_norm="none", **options)
    adam = {name: replace(o, lr=4e-3, beta1=0.0, beta2=0.95) for name, o in config.optim.items()}
    data = replace(config.data, size=16, channels=1)
    config = replace(config, system=replace(config.system, networks=networks, latent=6), data=data, optim=adam)
    config = replace(config, averaging=Averaging(halflife_kimg=0.2))
    state, step = step_of(config)
    side = torch.linspace(-0.9, 0.9, 16).expand(16, 16)

    def batch(number: int):
        made = batch_of(config, number)
        sign = torch.where(made.index % 2 == 0, 1.0, -1.0)[:, None, None, None]
        return replace(made, images=(sign * side).contiguous(memory_format=torch.channels_last))

    with pytest.warns(RuntimeWarning, match="not piecewise linear") if "attention" in options else nullcontext():
        for number in range(150):
            step(lambda number=number: batch(number))
    images = sample_images(
        config.system, state.averages, picture_latents(config.system, range(200), torch.device("cpu"))
    )
    slope = (images * side).mean((1, 2, 3)) / side.square().mean()
    error = (images - slope[:, None, None, None] * side).square().mean()
    assert 0.15 < (slope > 0).double().mean() < 0.85
    assert slope.abs().mean().item() == pytest.approx(1, abs=0.3)
    assert error < 0.15


# ---- the normalising flow


def test_the_flow_starts_as_the_identity_and_is_inverted() -> None:
    for length in (2, 5):
        flow = RealNVP(length, layers=3, hidden=8).double()
        z = random(4, length)
        torch.testing.assert_close(flow(z), z)
        shuffled(flow)
        x, log_det = flow.with_log_det(z)
        back, inverse_log_det = flow.inverse(x)
        torch.testing.assert_close(back, z)
        torch.testing.assert_close(inverse_log_det, -log_det)
        assert (x - z).abs().min(1).values.max() > 1e-3  # no number stays as it is


def test_the_flows_determinant_is_that_of_its_jacobian() -> None:
    flow = shuffled(RealNVP(5, layers=3, hidden=8))
    z = random(3, 5)
    _, log_det = flow.with_log_det(z)
    for n in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0], z[n])
        torch.testing.assert_close(log_det[n], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_flows_density_is_one_in_all() -> None:
    flow = shuffled(RealNVP(2, layers=2, hidden=4))
    side = torch.linspace(-12, 12, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    total = flow.log_density(grid).exp().sum() * (24 / 399) ** 2
    assert total.item() == pytest.approx(1, abs=5e-3)
    plain = RealNVP(2).double().log_density(torch.zeros(1, 2, dtype=torch.float64))
    assert plain.item() == pytest.approx(-math.log(2 * math.pi))


def test_a_generator_with_a_flow_for_a_prior_covers_the_ring() -> None:
    """The flow moves away from the identity, with the generator."""
    steps, batch = 500, 256
    system = UnconditionalGAN(Plane(96), latent=2, loss="relativistic", r1=0.05, r2=0.05, prior="flow")
    lr = Schedule(4e-3, 2e-4, begin=0.4)
    state, step = game(system, batch=batch, total=steps * batch, lr=lr, beta1=0.0, beta2=0.95,
                       averaging=Averaging(halflife_kimg=20, rampup=0.1))  # fmt: skip
    batches = Batches(batch, ring(1 << 16, torch.Generator().manual_seed(0)))
    for _ in range(steps):
        step(batches)
    latents = picture_latents(system, range(2000), torch.device("cpu"))
    modes, near = ring_cover(sample_images(system, state.averages, latents, batch=2000))
    generator = state.averages["generator"]
    assert isinstance(generator, WithPrior)
    with torch.no_grad():
        assert (generator.flow(latents) - latents).abs().mean() > 0.05
    assert modes >= 7
    assert near > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "flo"}, "prior 'flo' is unknown; did you mean 'flow'?"),
        ({"prior": "flow", "latent": 1}, "prior 'flow' needs a latent of 2 or more, got 1"),
        ({"networks": DCGAN(multi_scale=True), "simultaneous": True}, "multi_scale networks cannot be trained with"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(FastganError) as error:
        UnconditionalGAN(**options)
    assert str(error.value).startswith(message)
