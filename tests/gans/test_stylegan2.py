"""StyleGAN2's turns against the paper's formulas in float64, its pictures, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_presets import batch_of, narrow, step_of
from torch import Tensor, nn
from torch.func import functional_call

from fastgan.contract import Draw, Samples, Styles
from fastgan.errors import FastganError
from fastgan.gans import StyleBasedGAN
from fastgan.gans.stylegan2 import PATH_DECAY, STYLE_DECAY, path_lengths
from fastgan.optim import Optimizer
from fastgan.options import Config
from fastgan.schedule import Schedule
from fastgan.step import Step, TrainState


def small(**system: object) -> tuple[Config, TrainState, Step]:
    """The digits' preset, narrow, in float64 on 8x8 images; noise has a strength, so that it counts."""
    config = narrow("stylegan2-digits", batch=4, **system)
    config = replace(config, data=replace(config.data, size=8))
    state, step = step_of(config, torch.float64)
    with torch.no_grad():
        for name, p in state.modules["generator"].named_parameters():
            if name.endswith("strength"):
                p.fill_(0.3)
    return config, state, step


def turn(step: Step, name: str):
    return next((number, turn) for number, turn in enumerate(step.turns) if turn.name == name)


def test_path_lengths_of_a_linear_generator() -> None:
    """g(w) = sum_l A_l w_l: the lengths are sqrt(mean_l |A_l^T y|^2), and their slopes are known."""
    torch.manual_seed(0)
    a = torch.randn(3, 2 * 4 * 5, 6, dtype=torch.float64, requires_grad=True)  # [layers, numbers of an image, style]
    w = torch.randn(7, 3, 6, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(7, 2, 4, 5, dtype=torch.float64)
    lengths = path_lengths(torch.einsum("lps,nls->np", a, w).view(7, 2, 4, 5), w, probe)
    y = probe.flatten(1) / math.sqrt(4 * 5)
    products = torch.einsum("lps,np->nls", a, y)
    expected = products.square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(lengths, expected)
    slopes = torch.autograd.grad((lengths - 1.5).square().mean(), a)
    torch.testing.assert_close(slopes, torch.autograd.grad((expected - 1.5).square().mean(), a))


def test_path_penalty_against_finite_differences() -> None:
    _, state, _ = small()
    generator, torch_draw = state.modules["generator"], torch.Generator().manual_seed(0)
    styles = torch.randn(2, 4, 12, generator=torch_draw, dtype=torch.float64)
    noise = torch.randn(2, generator.synthesis.noise_numbers, generator=torch_draw, dtype=torch.float64)
    probe = torch.randn(2, 1, 8, 8, generator=torch_draw, dtype=torch.float64)
    names, parameters = zip(*generator.synthesis.named_parameters(), strict=True)

    def penalty(*values: Tensor) -> Tensor:
        w = styles.clone().requires_grad_()
        images = functional_call(generator.synthesis, dict(zip(names, values, strict=True)), (w, noise))
        return (path_lengths(images, w, probe) - 0.7).square().mean()

    assert torch.autograd.gradcheck(penalty, parameters, fast_mode=True, atol=1e-6)


def test_the_path_turn() -> None:
    """Gradient, moving average and share of the batch, with explicit Jacobians."""
    config, state, step = small(style_mixing=0.0)
    batch, generator = batch_of(config, 0, torch.float64), state.modules["generator"]
    generator.path_mean.fill_(0.4)
    number, path = turn(step, "path")
    values = path.gradients(batch, Draw(0, batch.index, number))
    ours = {name: p.grad.clone() for name, p in generator.named_parameters() if p.grad is not None}

    some, synthesis = Draw(0, batch.index[::2], number), generator.synthesis
    w = generator.mapping(some.normal(config.system.latent).double())
    noise, probe = some.normal(synthesis.noise_numbers).double(), some.normal(1, 8, 8).double()
    lengths = []
    for n in range(2):
        styles = w[n : n + 1, None].expand(-1, synthesis.styles, -1)

        def image(s: Tensor, n: int = n) -> Tensor:
            return synthesis(s, noise[n : n + 1]).flatten()

        jacobian = torch.autograd.functional.jacobian(image, styles, create_graph=True)  # [pixels, 1, layers, style]
        product = torch.einsum("pnls,p->ls", jacobian, probe[n].flatten() / 8)
        lengths.append(product.square().sum(1).mean().sqrt())
    stacked = torch.stack(lengths)
    mean = 0.4 * PATH_DECAY + (1 - PATH_DECAY) * stacked.mean().detach()
    penalty = (stacked - mean).square().mean()
    torch.testing.assert_close(values["penalty"], penalty.detach())
    torch.testing.assert_close(generator.path_mean, mean)
    every = config.system.path_every
    exact = torch.autograd.grad(
        2.0 * every * penalty, list(generator.parameters()), allow_unused=True, materialize_grads=True
    )
    for (name, _), slope in zip(generator.named_parameters(), exact, strict=True):
        torch.testing.assert_close(ours.get(name, torch.zeros_like(slope)), slope, rtol=1e-9, atol=1e-9)
    assert sum(slope.abs().sum() > 0 for slope in exact) > 20


def test_the_r1_turn() -> None:
    config, state, step = small(r1=3.0)
    batch, critic = batch_of(config, 0, torch.float64), state.modules["critic"]
    number, r1 = turn(step, "r1")
    value = r1.gradients(batch, Draw(0, batch.index, number))["r1"]
    ours = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    x = batch.images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    squares = slope.flatten(1).norm(dim=1).square().mean()
    torch.testing.assert_close(value, squares.detach())
    trained = [p for p in critic.parameters() if p.grad is not None]
    for mine, exact in zip(ours, torch.autograd.grad(3.0 / 2 * config.system.r1_every * squares, trained), strict=True):
        torch.testing.assert_close(mine, exact)


def test_which_turns_a_step_plays_and_that_averages_follow_once() -> None:
    _, state, step = small(r1_every=4, path_every=2)
    names = [[step.turns[n].name for n in (setattr(state, "step", number), step.phase)[1]] for number in range(5)]
    assert names[0] == names[4] == ["critic", "r1", "generator", "path"]
    assert names[2] == ["critic", "generator", "path"]
    assert names[1] == names[3] == ["critic", "generator"]
    assert [turn.average for turn in step.turns] == [True, True, True, False]


def test_the_average_does_not_follow_the_path_turn() -> None:
    config, state, step = small(path_every=1)
    player = state.players["generator"]
    batch = batch_of(config, 0, torch.float64)
    step._decay.fill_(0.5)
    number, path = turn(step, "path")
    before = [p.clone() for p in player.average_params], [p.detach().clone() for p in player.params]
    step.play(path, batch, Draw(0, batch.index, number))
    assert all(torch.equal(a, b) for a, b in zip(player.average_params, before[0], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(player.params, before[1], strict=True))


def test_styles_of_two_latents_from_a_layer_on() -> None:
    config, state, step = small(style_mixing=0.5)
    config = replace(config, batch=64)
    batch = batch_of(config, 0, torch.float64)
    play = turn(step, "critic")[1].gradients.__self__
    w, styles = play.draw_styles(Draw(0, batch.index, 0), torch.float64)
    draw = Draw(0, batch.index, 0)
    first, second = (state.modules["generator"].mapping(draw.normal(8).double()) for _ in range(2))
    torch.testing.assert_close(w, first)
    from_second = (styles == second[:, None]).all(2)
    assert torch.equal((styles == first[:, None]).all(2), ~from_second)
    assert not from_second[:, 0].any()  # the first layer has the first latent's
    assert (from_second[:, :-1] <= from_second[:, 1:]).all()  # from a layer on
    assert 16 <= from_second.any(1).sum() <= 48
    assert len(set(from_second.sum(1).tolist())) == 4  # every layer, and none


def test_the_mean_style_follows() -> None:
    config, state, step = small()
    batch, generator = batch_of(config, 0, torch.float64), state.modules["generator"]
    w = generator.mapping(Draw(0, batch.index, 0).normal(8).double())
    turn(step, "critic")[1].gradients(batch, Draw(0, batch.index, 0))
    torch.testing.assert_close(generator.style_mean, (1 - STYLE_DECAY) * w.mean(0).detach())


def test_pictures_by_truncation_and_by_styles() -> None:
    config, state, _ = small()
    system, players = config.system, state.modules
    assert isinstance(system, Samples)
    assert isinstance(system, Styles)
    players["generator"].style_mean.normal_()
    z = torch.randn(3, 8, dtype=torch.float64)
    styles = system.styles(players, z)
    torch.testing.assert_close(system.sample(players, z), system.from_styles(players, styles))
    mean = system.truncated(0.0)
    pictures = mean.sample(players, z)
    torch.testing.assert_close(pictures, pictures[:1].expand(3, -1, -1, -1))
    half = system.truncated(0.5).styles(players, z)
    torch.testing.assert_close(half, (styles + players["generator"].style_mean) / 2)


def test_adam_for_lazy_turns() -> None:
    lazy = Optimizer(lr=0.002, beta1=0.5, beta2=0.99).lazy(4)
    assert lazy.lr == pytest.approx(0.0016)
    assert lazy.beta1 == pytest.approx(0.5**0.8)
    assert lazy.beta2 == pytest.approx(0.99**0.8)
    scheduled = Optimizer(lr=Schedule(1.0, 0.5), beta1=0.0).lazy(4)
    assert scheduled.lr == Schedule(0.8, 0.4)
    assert scheduled.beta1 == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hing"}, "loss 'hing' is unknown; did you mean 'hinge'?"),
        ({"r1": -1.0}, "r1 must be 0 or more, got -1.0"),
        ({"path_every": 0}, "path_every must be 1 or more, got 0"),
        ({"style_mixing": 1.5}, "style_mixing must be from 0 to 1, got 1.5"),
        ({"truncation": 7.0}, "truncation must be from -2 to 2"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, float], message: str) -> None:
    with pytest.raises(FastganError) as error:
        StyleBasedGAN(**options)
    assert str(error.value).startswith(message)


def test_it_learns_where_the_light_is() -> None:
    """Images 8x8 that are bright on the left or on the right: in 200 steps, so are its own, of both kinds."""
    config = narrow("stylegan2-digits", batch=16, r1=0.1)
    data = replace(config.data, size=8)
    adam = {name: replace(o, lr=5e-3) for name, o in config.optim.items()}
    config = replace(config, data=data, optim=adam, averaging=replace(config.averaging, halflife_kimg=0.3))
    state, step = step_of(config)
    side = torch.linspace(-1, 1, 8).expand(8, 8)

    def batch(number: int):
        made = batch_of(config, number)
        sign = torch.where(made.index % 2 == 0, 1.0, -1.0)[:, None, None, None]
        return replace(made, images=(sign * side).contiguous(memory_format=torch.channels_last))

    for number in range(200):
        step(partial(batch, number))
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = config.system.sample(state.averages, z)
    slope = (images * side).mean((1, 2, 3)) / side.square().mean()
    error = (images - slope[:, None, None, None] * side).square().mean()
    assert 0.2 < (slope > 0).double().mean() < 0.8
    assert slope.abs().mean() == pytest.approx(1, abs=0.3)
    assert error < 0.15
    assert step.read_statistics()["skipped"] == 0
    assert isinstance(state.modules["critic"], nn.Module)
