"""The training step: the same as a plain loop, no host reads, nothing applied where something is not finite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small import Batches, Pictures, game
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.contract import Batch, Draw, Turn
from fastgan.errors import FastganError
from fastgan.gans import UnconditionalGAN
from fastgan.gans.play import frozen
from fastgan.losses import LOSSES
from fastgan.optim import Averaging, PlayerState
from fastgan.schedule import Schedule
from fastgan.step import TrainState


def pictures(count: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def gradients(player: PlayerState) -> Tensor:
    return torch.cat([p.grad.flatten() for p in player.params if p.grad is not None])


def snapshot(state: TrainState) -> dict[str, Tensor]:
    return {f"{f}/{k}": t.detach().clone() for f, tensors in state.tensors().items() for k, t in tensors.items()}


def test_equals_a_plain_loop() -> None:
    """Non-saturating + R1, alternating updates, Adam and EMA written out with plain PyTorch, in float64."""
    system = UnconditionalGAN(Pictures(), latent=3, loss="non_saturating", r1=0.7)
    state, step = game(system, dtype=torch.float64, lr=1e-2, beta1=0.5, beta2=0.9, averaging=Averaging(0.05, rampup=0))
    g, d = copy.deepcopy(state.players["generator"].module), copy.deepcopy(state.players["critic"].module)
    ema = copy.deepcopy(g)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2, betas=(0.5, 0.9)) for m in (d, g)]
    data = pictures(dtype=torch.float64)
    batches = Batches(8, data)
    decay = 0.5 ** (8 / 50)
    for i in range(6):
        step(batches)
        real = data[(torch.arange(8) + 8 * i) % len(data)].requires_grad_()
        fake = g(Draw(0, torch.arange(8) + 8 * i, 0).normal(3).double())
        logits = d(real)
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        loss = torch.nn.functional.softplus(-logits).mean() + torch.nn.functional.softplus(d(fake.detach())).mean()
        optimizers[0].zero_grad()
        (loss + 0.35 * slope.square().flatten(1).sum(1).mean()).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        torch.nn.functional.softplus(-d(fake)).mean().backward()
        optimizers[1].step()
        for a, b in zip([*ema.parameters(), *ema.buffers()], [*g.parameters(), *g.buffers()], strict=True):
            if a.is_floating_point():
                a.data.lerp_(b.data, 1 - decay)
            else:
                a.data.copy_(b.data)
    average = state.players["generator"].average
    assert average is not None
    for mine, theirs in (
        (state.players["generator"].module, g),
        (state.players["critic"].module, d),
        (average, ema),
    ):
        for key, value in theirs.state_dict().items():
            assert torch.allclose(mine.state_dict()[key], value, rtol=1e-10, atol=1e-12), key
    assert state.step == 6
    assert state.samples == int(state.seen) == 48


@pytest.fixture
def no_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host reads and uploads that a dispatch mode does not see on the CPU."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("host read or upload")

    for name in ("tolist", "numpy", "cpu", "item"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "tensor", refuse)


class NoHostReads(TorchDispatchMode):
    """Raises on what would make the host wait for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(name in str(func) for name in self.FORBIDDEN):
            raise AssertionError(f"host read: {func}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [{"loss": name} for name in LOSSES]
    + [
        {"loss": "relativistic", "r1": Schedule(1, 0.1), "r2": 0.3, "penalty_every": 2},
        {"loss": "wasserstein", "wgan_gp": 10.0, "critic_steps": 3},
        {"loss": "hinge", "latent_distribution": "uniform"},
    ],
)
@pytest.mark.parametrize(
    "kind", ["adam", pytest.param("sgd", marks=pytest.mark.long), pytest.param("rmsprop", marks=pytest.mark.long)]
)
def test_no_host_reads(options: dict[str, object], kind: str) -> None:
    system = UnconditionalGAN(Pictures(), latent=3, **options)  # type: ignore[arg-type]
    state, step = game(system, kind=kind, lr=Schedule(1e-3, 0.0), clip_norm=1.0, clip_weights=0.5)
    batches = Batches(8, pictures())
    prepared = [batches() for _ in range(2 * step.batches)]
    before = snapshot(state)
    with NoHostReads():
        for _ in range(2):
            step(lambda: prepared.pop(0))
    assert not prepared
    assert any(not torch.equal(before[k], v) for k, v in snapshot(state).items())
    assert step.read_statistics()["skipped"] == 0


@pytest.mark.parametrize("kind", ["adam", "sgd", "rmsprop"])
def test_a_turn_that_is_not_finite_changes_nothing(kind: str) -> None:
    state, step = game(UnconditionalGAN(Pictures(), latent=3, loss="relativistic", r1=1.0), kind=kind, lr=1e-3)
    batches = Batches(8, pictures())
    step(batches)
    before = snapshot(state)
    broken = Batch(torch.full((8, 1, 8, 8), math.inf), None, torch.arange(8))
    step(lambda: broken)
    after = snapshot(state)
    counters = {"counters/seen", "counters/skipped"}
    for key in before.keys() - counters:
        if not key.startswith("generator") or "num_batches" in key:
            assert torch.equal(before[key], after[key]), key
    # Relativistic: the generator's loss reads the reals too, so both turns were skipped.
    assert all(torch.equal(before[k], after[k]) for k in before.keys() - counters)
    statistics = step.read_statistics()
    assert (statistics["skipped"], statistics["skipped_in_a_row"]) == (2, 1)
    assert all(math.isfinite(v) for v in statistics.values()), "means leave out what was skipped"
    step(batches)
    assert step.read_statistics()["skipped_in_a_row"] == 0
    assert all(t.isfinite().all() for t in snapshot(state).values())


@pytest.mark.parametrize("kind", ["adam", "sgd", "rmsprop"])
def test_restored_state_goes_on_bitwise(kind: str) -> None:
    system = UnconditionalGAN(Pictures(), latent=3, r1=Schedule(1, 0.1), penalty_every=2, critic_steps=2)
    state, step = game(system, kind=kind, lr=Schedule(1e-2, 0.0))
    batches = Batches(8, pictures())
    for _ in range(3):
        step(batches)
    saved, counters = (
        {f: {k: t.clone() for k, t in ts.items()} for f, ts in state.tensors().items()},
        state.counters(),
    )
    for _ in range(3):
        step(batches)
    other, other_step = game(system, kind=kind, lr=Schedule(1e-2, 0.0), seed=0)
    other.restore(saved, counters)
    more = Batches(8, pictures())
    more.sample = other.samples
    for _ in range(3):
        other_step(more)
    theirs = snapshot(other)
    assert all(torch.equal(value, theirs[key]) for key, value in snapshot(state).items())


def test_restore_refuses_another_network_and_changes_nothing() -> None:
    state, _ = game(UnconditionalGAN(Pictures(), latent=3))
    wider, _ = game(UnconditionalGAN(Pictures(width=5), latent=3))
    before = snapshot(state)
    with pytest.raises(FastganError, match="another network"):
        state.restore(wider.tensors(), wider.counters())
    with pytest.raises(FastganError, match="has no 'critic"):
        state.restore({k: v for k, v in state.tensors().items() if k != "critic"}, state.counters())
    assert all(torch.equal(v, before[k]) for k, v in snapshot(state).items())


def test_lazy_penalties_and_repeats() -> None:
    system = UnconditionalGAN(Pictures(), latent=3, r1=0.5, penalty_every=3, critic_steps=4)
    state, step = game(system, lr=1e-3)
    batches = Batches(8, pictures())
    assert step.batches == 4
    played = [[(t.name, t.repeat) for t in step.turns if t.plays(s)] for s in range(4)]
    assert played == [[("critic", 3), ("critic", 1), ("generator", 1)]] * 4
    for s in range(4):
        step(batches)
        assert math.isnan(step.read_statistics()["critic.r1"]) == (s % 3 != 0)
    assert batches.sample == state.samples == 4 * 4 * 8


def test_lazy_penalty_is_as_strong_as_its_interval() -> None:
    """With a critic that is linear in x the gradient of R1 is gamma * w, on the one step in three, three times."""
    from fastgan.penalty import critic_backward

    system = UnconditionalGAN(Pictures(), latent=3, r1=0.5, penalty_every=3)
    state, step = game(system, lr=1e-3)
    batch = Batches(8, pictures())()
    critic = state.players["critic"]
    lazy = next(t for t in step.turns if t.name == "critic" and not t.rest)
    step._schedule()
    critic.zero_grad()
    lazy.gradients(batch, Draw(0, batch.index, 0))
    got = gradients(critic)
    critic.zero_grad()
    with torch.no_grad():
        fake = state.players["generator"].module(Draw(0, batch.index, 0).normal(3))
    critic_backward(critic.module, batch.images, fake, LOSSES["non_saturating"].critic, r1=1.5)
    assert torch.allclose(got, gradients(critic), rtol=1e-5, atol=1e-7)


def test_turn_phases() -> None:
    turn = Turn("t", (), lambda batch, draw: {}, every=4)
    rest = Turn("t", (), lambda batch, draw: {}, every=4, rest=True)
    assert [turn.plays(s) for s in range(6)] == [True, False, False, False, True, False]
    assert all(turn.plays(s) != rest.plays(s) for s in range(20))


def test_frozen_restores_each_flag() -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with frozen(module):
        assert not module.weight.requires_grad
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


def test_the_generators_turn_leaves_the_critic_alone() -> None:
    state, step = game(UnconditionalGAN(Pictures(), latent=3), lr=1e-3)
    batch = Batches(8, pictures())()
    critic_turn, generator_turn = step.turns
    critic_turn.gradients(batch, Draw(0, batch.index, 0))
    assert all(p.grad is None for p in state.players["generator"].params)
    critic = gradients(state.players["critic"])
    generator_turn.gradients(batch, Draw(0, batch.index, 1))
    assert torch.equal(critic, gradients(state.players["critic"]))
    assert gradients(state.players["generator"]).abs().sum() > 0


def test_draws_differ_by_turn_call_sample_and_seed_only() -> None:
    index = torch.arange(5)
    a = Draw(1, index, 0)
    first, second = a.normal(4), a.normal(4)
    assert not torch.equal(first, second)
    assert torch.equal(first, Draw(1, index, 0).normal(4))
    assert torch.equal(first[3:], Draw(1, index[3:], 0).normal(4))
    assert not torch.equal(first, Draw(1, index, 1).normal(4))
    assert not torch.equal(first, Draw(2, index, 0).normal(4))


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    a, _ = game(UnconditionalGAN(Pictures(), latent=3), seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(6)
    b, _ = game(UnconditionalGAN(Pictures(), latent=3), seed=3)
    c, _ = game(UnconditionalGAN(Pictures(), latent=3), seed=4)
    assert all(torch.equal(v, snapshot(b)[k]) for k, v in snapshot(a).items())
    assert not torch.equal(a.players["critic"].params[0], c.players["critic"].params[0])
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "the caller's random state is left as it was"


def test_players_and_optimisers_must_match() -> None:
    from fastgan.contract import ImageShape
    from fastgan.optim import Optimizer
    from fastgan.step import new_state

    system, shape, device = UnconditionalGAN(Pictures(), latent=3), ImageShape(1, 8), torch.device("cpu")
    with pytest.raises(FastganError, match=r"optim\.critic is missing"):
        new_state(system, shape, {"generator": Optimizer()}, Averaging(), seed=0, device=device)
    names = ("generator", "critic", "encoder")
    with pytest.raises(FastganError, match=r"optim\.encoder: the system has no such player"):
        new_state(system, shape, {n: Optimizer() for n in names}, Averaging(), seed=0, device=device)


def test_a_critic_that_never_moves_is_counted_though_the_generator_does() -> None:
    state, step = game(UnconditionalGAN(Pictures(), latent=3, r1=1e38), lr=1e-3)
    state.players["critic"].module.get_parameter("0.weight").data.mul_(1e6)
    batches = Batches(8, pictures())
    before = snapshot(state)
    for _ in range(4):
        step(batches)
    statistics = step.read_statistics()
    assert (statistics["skipped"], statistics["skipped_in_a_row"]) == (4, 4)
    after = snapshot(state)
    assert all(torch.equal(t, before[k]) for k, t in after.items() if k.startswith("critic"))
    assert float(after["generator.optimizer/updates"]) == 4


def test_scalars_stay_where_they_are() -> None:
    """A captured step reads them by address."""
    system = UnconditionalGAN(Pictures(), latent=3, r1=Schedule(1, 0.1), r2=0.5)
    state, step = game(system, lr=Schedule(1e-3, 0.0), total=100)
    batches = Batches(8, pictures())

    def tensors() -> list[Tensor]:
        return [*step.scalars.values(), *state.players["critic"].values(step.progress), step._decay]

    addresses, values = [t.data_ptr() for t in tensors()], [float(t) for t in tensors()]
    for _ in range(3):
        step(batches)
    assert [t.data_ptr() for t in tensors()] == addresses
    changed = [float(t) != v for t, v in zip(tensors(), values, strict=True)]
    assert changed == [True, False, True, False, False, True]  # r1, r2, lr, beta1, beta2, decay
