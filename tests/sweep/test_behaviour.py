"""Everything around the gradients is as after `backward()`: `.grad`, hooks, buffers, labels, callables, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sweep.compare import (
    EXACT,
    F64,
    LOSSES,
    assert_agrees,
    assert_exact,
    assert_gradients,
    assert_same,
    clear,
    gradients,
    images,
    refusal,
    run,
    small,
    spread,
)
from sweep.critics import Pair, UNet, dcgan, patch
from sweep.rules import Op
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.penalty import critic_backward

REAL, FAKE = images(4, 1), images(4, 2)
HINGE = LOSSES["hinge"]


def by(method: str, critic: nn.Module, **options: Any) -> dict[str, Tensor | None]:
    return run(critic, REAL, FAKE, HINGE, method=method, **({"r1": 1.0, "r2": 0.5} | options)).gradients


def test_adds_to_the_gradients_that_are_there():
    """Into the same tensors, whatever their strides: an optimiser may hold views of one flat buffer."""
    critic, twin = small(), small()
    flat = torch.randn(sum(p.numel() for p in critic.parameters()), dtype=F64)
    before = flat.clone()
    offset = 0
    for parameter, other in zip(critic.parameters(), twin.parameters(), strict=True):
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        other.grad = parameter.grad.clone()
        offset += parameter.numel()
    kept = [p.grad for p in critic.parameters()]
    by("sweep", critic)
    by("autograd", twin)
    assert all(p.grad is grad for p, grad in zip(critic.parameters(), kept, strict=True))
    wanted = torch.cat([p.grad.flatten() for p in twin.parameters()])
    torch.testing.assert_close(flat, wanted, rtol=1e-12, atol=1e-12)
    assert (flat != before).double().mean() > 0.8


def test_new_gradients_have_the_layout_and_storage_of_their_own():
    critic = small().to(memory_format=torch.channels_last)
    by("sweep", critic)
    for name, parameter in critic.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
        assert parameter.grad.untyped_storage().nbytes() == parameter.grad.nbytes, name
        assert not parameter.grad.requires_grad
        assert parameter.grad.is_leaf


def test_some_parameters_have_a_gradient_and_some_do_not():
    critic, twin = small(), small()
    for each in (critic, twin):
        each[0].weight.grad = torch.ones_like(each[0].weight)
    assert_gradients(by("autograd", twin), by("sweep", critic))


@pytest.mark.parametrize(
    "frozen", [["0.weight"], ["0.bias", "3.weight"], ["5.weight", "5.bias"], ["0.weight", "3.weight"]]
)
def test_frozen_parameters_are_left_alone(frozen: list[str]):
    def make() -> nn.Module:
        critic = small()
        for name, parameter in critic.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return critic

    critic = make()
    given = by("sweep", critic)
    assert {name for name, gradient in given.items() if gradient is None} == set(frozen)
    assert not any(critic.get_parameter(name).requires_grad for name in frozen)
    assert_exact(make, REAL, FAKE, r1=1.0, r2=1.0)


def test_unused_and_tied_parameters():
    critic = spread(UNet())
    given = by("sweep", critic)
    assert given["unused.weight"] is None
    assert given["unused.bias"] is None
    assert "deeper.weight" not in given
    assert_gradients(by("autograd", spread(UNet())), given)


def test_hooks_of_parameters_run_once_with_the_whole_gradient():
    critic, seen = small(), []
    wanted = by("autograd", small())
    critic[0].weight.register_hook(lambda g: seen.append(g.clone()))
    critic[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    critic[3].bias.register_hook(lambda g: 2 * g)
    given = by("sweep", critic)
    assert len(seen) == 2
    for gradient in (*seen, given["0.weight"]):
        torch.testing.assert_close(gradient, wanted["0.weight"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(given["3.bias"], 2 * wanted["3.bias"], rtol=1e-12, atol=1e-13)


def test_a_hook_may_clear_the_gradient():
    """Optimisers that step within the backward pass do so."""
    critic, steps = small(), []

    def step(parameter: Tensor) -> None:
        steps.append(parameter.grad)
        parameter.grad = None

    for parameter in critic.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    assert all(gradient is None for gradient in by("sweep", critic).values())
    assert len(steps) == len(list(critic.parameters()))


def test_hooks_of_gradient_accumulators_run():
    """Data-parallel wrappers hang theirs there."""
    counts = {}
    for method in ("autograd", "sweep"):
        critic, seen = small(), []
        weight = critic[0].weight
        accumulator = weight.expand_as(weight).grad_fn.next_functions[0][0]
        accumulator.register_hook(lambda *_, seen=seen: seen.append(1))
        by(method, critic)
        counts[method] = len(seen)
    assert counts["sweep"] == counts["autograd"] == 1


@pytest.mark.parametrize("method", ["sweep", "auto"])
def test_hooks_of_a_critic_with_logit_maps_run_once(method: str):
    """Also where "auto" looks first what is faster."""
    critic, seen = spread(patch()), []
    critic[0].weight.register_hook(lambda g: seen.append(g.clone()))
    given = by(method, critic)
    assert len(seen) == 1
    assert_gradients(by("autograd", spread(patch())), given)


def test_forward_hooks_are_part_of_the_critic():
    def make() -> nn.Module:
        critic = small()
        critic[0].register_forward_hook(lambda module, inputs, output: output * 1.5)
        critic[3].register_forward_pre_hook(lambda module, inputs: (inputs[0] - 0.2,))
        return critic

    assert_exact(make, REAL, FAKE, r1=1.0)
    with pytest.raises(AssertionError):
        assert_gradients(by("autograd", small()), by("sweep", make()))


class Recorder(nn.Module):
    """Keeps statistics of what it sees: buffers in place and replaced, and a Python number."""

    steps: Tensor
    mean: Tensor
    last: Tensor

    def __init__(self, maps: bool = False) -> None:
        super().__init__()
        self.inner = spread(patch()) if maps else small()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros((), dtype=F64))
        self.register_buffer("last", torch.zeros((), dtype=F64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        if self.training:
            self.steps += 1
            self.mean.lerp_(logits.detach().mean(), 0.1)
            self.last = x.detach().abs().amax()
        return logits


@pytest.mark.parametrize("penalty", [{"r1": 1.0}, {"r1": 1.0, "r2": 1.0}, {"wgan_gp": 1.0}], ids=str)
def test_buffers_are_updated_once_per_batch_and_in_order(penalty: dict[str, float]):
    epsilon = torch.linspace(0.1, 0.9, 4, dtype=F64)
    assert_exact(Recorder, REAL, FAKE, HINGE, epsilon=epsilon, **penalty)
    critic = Recorder()
    run(critic, REAL, FAKE, HINGE, method="sweep", epsilon=epsilon, **penalty)
    assert critic.steps == (3 if "wgan_gp" in penalty else 2)
    run(critic.eval(), REAL, FAKE, HINGE, method="sweep", epsilon=epsilon, **penalty)
    assert critic.steps == (3 if "wgan_gp" in penalty else 2)


@pytest.mark.parametrize("maps", [False, True])
def test_buffers_under_auto(maps: bool):
    """Trying out what is faster, or falling back, leaves no second update."""
    assert_exact(lambda: Recorder(maps), REAL, FAKE, HINGE, method="auto", expect=None, r1=1.0)


class Counting(Recorder):
    """A Python number that changes at each call; the logits do not depend on it."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("method", ["sweep", "auto"])
def test_a_python_counter(method: str, maps: bool):
    critic, twin = Counting(maps), Counting(maps)
    for seed in range(3):
        wanted = run(twin, REAL, FAKE, HINGE, seed=seed, method="autograd", r1=1.0)
        assert_same(wanted, run(critic, REAL, FAKE, HINGE, seed=seed, method=method, r1=1.0))
    assert critic.calls == twin.calls == 6


@pytest.mark.long
def test_a_python_counter_over_many_steps():
    critic, twin = Counting(), Counting()
    for seed in range(80):
        wanted = run(twin, REAL, FAKE, HINGE, seed=seed, method="autograd", r1=1.0)
        assert_same(wanted, run(critic, REAL, FAKE, HINGE, seed=seed, method="auto", r1=1.0))
        assert critic.calls == twin.calls


class Centred(nn.Module):
    """A running mean of the logits is taken off them, as self-distillation does."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()
        self.register_buffer("centre", torch.zeros(1, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        with torch.no_grad():
            self.centre.copy_(0.9 * self.centre + 0.1 * logits.mean(0))
        return logits - self.centre


def test_a_running_centre_of_the_logits():
    assert_exact(Centred, REAL, FAKE, HINGE, r1=1.0, r2=1.0)


def test_different_labels_for_real_and_fake_reach_their_own_rows():
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.rows = small()[:4], nn.Embedding(6, 5, dtype=F64)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return (F.relu(self.stem(x)) * self.rows(labels)).sum(1)

    critic = Selecting()
    options = {"real_labels": torch.tensor([0, 0, 1, 1]), "fake_labels": torch.tensor([2, 3, 3, 3])}
    given = by("sweep", critic, **options)
    used = given["rows.weight"].abs().sum(1) > 0
    assert used.tolist() == [True, True, True, True, False, False]
    assert_agrees(critic, REAL, FAKE, r1=1.0, r2=0.5, **options)


def test_tuples_with_and_without_labels():
    real = images(4, 1, (6,)), images(4, 2, (3, 2)), torch.tensor([0, 1, 2, 3])
    fake = images(4, 3, (6,)), images(4, 4, (3, 2)), torch.tensor([4, 4, 0, 1])
    assert_exact(lambda: spread(Pair()), real, fake, r1=1.0, r2=2.0)
    assert_exact(small, (REAL,), (FAKE,), r1=1.0)
    twice = Op(lambda m, x: m.inner(x), inner=small())
    twice.forward = lambda x, y: twice.inner(x - 2 * y)  # type: ignore[method-assign]
    assert_agrees(twice, (REAL, REAL), (FAKE, REAL), r1=1.0)


def test_a_schedule_of_device_scalars_needs_no_new_capture():
    critic, twin = small(), small()
    coefficients = {name: torch.tensor(1.0, dtype=F64) for name in ("r1", "r2")}
    wgan_gp = torch.tensor(0.0)
    epsilon = torch.linspace(0.1, 0.9, 4, dtype=F64)
    for step in range(5):
        for name, coefficient in coefficients.items():
            coefficient.fill_({"r1": 1.0, "r2": 2.0}[name] * (0.0 if step == 2 else 0.5**step))
        wgan_gp.fill_(step % 2)
        options = coefficients | {"wgan_gp": wgan_gp, "epsilon": epsilon}
        floats = {name: value.item() for name, value in coefficients.items()} | {"wgan_gp": float(wgan_gp)}
        wanted = run(twin, REAL, FAKE, HINGE, method="autograd", **options)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            given = run(critic, REAL, FAKE, HINGE, method="sweep", **options)
        assert_same(wanted, given)
        assert given.result.r1 is not None  # a tensor's work is done also where it is 0
        fresh = run(small(), REAL, FAKE, HINGE, method="autograd", epsilon=epsilon, **floats)
        torch.testing.assert_close(fresh.result.loss, given.result.loss, rtol=EXACT, atol=EXACT)
    assert all(coefficient.grad is None for coefficient in coefficients.values())


def test_a_lazy_interval():
    """Penalties at every third call, in both ways of leaving them out."""
    critic, twin = small(), small()
    for step in range(6):
        options = {"r1": 3.0, "r2": 3.0} if step % 3 == 0 else ({} if step % 3 == 1 else {"r1": 0.0})
        for each, method in ((critic, "auto"), (twin, "autograd")):
            run(each, REAL + step, FAKE, HINGE, method=method, **options)
        assert_gradients(gradients(twin), gradients(critic))


LOSS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nothing": lambda real, fake: 0 * (real.sum() + fake.sum()),
    "real alone": lambda real, fake: F.softplus(-real).mean(),
    "fake alone": lambda real, fake: fake.square().sum(),
    "relativistic average": lambda real, fake: F.softplus(fake - real.mean()).mean() + F.relu(fake.mean() - real).sum(),
    "all pairs": lambda real, fake: F.relu(1 + fake[:, None] - real[None]).mean(),
    "in place": lambda real, fake: (real.clone().neg_().exp() + fake.exp()).mean(),
    "a drift": lambda real, fake: fake.mean() - real.mean() + 1e-3 * real.square().mean(),
    "one sample": lambda real, fake: fake[0].sum() - real[-1].sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_any_function_of_the_logits_is_a_loss(name: str):
    assert_exact(small, REAL, FAKE, LOSS_FUNCTIONS[name], r1=1.0, r2=0.3)


def test_nothing_else_gets_a_gradient():
    generator = spread(nn.Sequential(nn.ConvTranspose2d(2, 3, 8)))
    latents = images(4, 3, (2, 1, 1)).requires_grad_()
    real, fake = REAL.clone().requires_grad_(), generator(latents)
    temperature = torch.tensor(0.5, dtype=F64, requires_grad=True)
    critic = small()
    critic.loose = torch.ones(1, dtype=F64, requires_grad=True)  # no parameter of the critic
    critic.forward = lambda x: critic.loose * nn.Sequential.forward(critic, x)  # type: ignore[method-assign]
    critic_backward(critic, real, fake, lambda r, f: HINGE(r * temperature, f), method="sweep", r1=1.0, r2=1.0)
    assert real.requires_grad
    for tensor in (real, latents, temperature, critic.loose, *generator.parameters()):
        assert tensor.grad is None
    fake.sum().backward()  # its graph is still there
    assert latents.grad is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_grad_mode_of_the_caller_does_not_matter(mode: Callable[[], Any]):
    critic = small()
    with mode():
        for _ in range(2):
            clear(critic)
            given = by("sweep", critic)
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert_gradients(by("autograd", small()), given)


def test_inference_mode_is_right_or_refused():
    critic = small()
    with torch.inference_mode():
        why = refusal(critic, REAL, FAKE, r1=1.0, r2=0.5)
    if why is None:
        assert_gradients(by("autograd", small()), gradients(critic))
    else:
        assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("first", [True, False])
def test_values_that_are_not_finite_set_the_flag(first: bool):
    """Also in the call that captures; the next call is as if nothing had been."""
    critic = small()
    if not first:
        by("sweep", critic)
    for bad in (torch.nan, torch.inf):
        real = REAL.clone()
        real[1, 0, 0, 0] = bad
        for options in ({"r1": 1.0}, {"r1": 1.0, "r2": 1.0}):
            clear(critic)
            outcome = run(critic, real, FAKE, HINGE, method="sweep", **options)
            assert outcome.result.method == "sweep"
            assert not outcome.result.finite
    clear(critic)
    outcome = run(critic, REAL, FAKE, HINGE, method="sweep", r1=1.0, r2=0.5)
    assert outcome.result.finite
    assert_gradients(by("autograd", small()), outcome.gradients)
    assert not run(critic, REAL, FAKE, HINGE, method="sweep", r1=torch.tensor(torch.inf)).result.finite
    assert not run(critic, REAL, FAKE, lambda r, f: (r - f).mean() / 0, method="sweep", r1=1.0).result.finite


def test_channels_last_and_other_strides():
    def make() -> nn.Module:
        return dcgan().to(memory_format=torch.channels_last)

    real, fake = images(4, 1, (3, 16, 16)), images(4, 2, (3, 16, 16))
    assert_exact(make, real.contiguous(memory_format=torch.channels_last), fake, r1=1.0, r2=1.0)
    assert_exact(dcgan, real.transpose(2, 3), fake.expand(1, *fake.shape)[0], r1=1.0, r2=1.0)
    one = images(1, 3, (3, 16, 16)).expand(4, -1, -1, -1)
    assert_exact(dcgan, one, fake, HINGE, calls=1, r1=1.0)
