"""Whatever changes between two calls leads to a new capture or none is needed; never to the result of a stale one."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from sweep.compare import F64, LOSSES, assert_agrees, assert_gradients, clear, gradients, images, run, spread
from sweep.critics import UNet, audio, dcgan, r3gan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

SCALE = 1.0


@dataclass
class Options:
    """Nested state."""

    slopes: list[float] = field(default_factory=lambda: [0.2, 0.4])
    names: dict[str, float] = field(default_factory=lambda: {"gain": 1.5})


class Adjustable(nn.Module):
    """[N, 3, 8, 8] -> [N]: reads plain Python values of every kind in its forward."""

    buffer: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.more = nn.ModuleList()
        self.out = nn.Linear(64, 1)
        self.slope, self.repeats, self.residual, self.mode = 0.2, 1, False, "avg"
        self.sizes, self.options = [1, 1], Options()
        self.dropout = nn.Dropout(0.0)
        self.act: Callable[[Tensor], Tensor] = F.relu
        self.register_buffer("buffer", torch.ones(4, 1, 1))
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = F.leaky_relu(self.conv1(x), self.slope) * self.options.names["gain"] * SCALE
        for _ in range(self.repeats):
            y = F.leaky_relu(self.conv2(x), self.options.slopes[1])
            x = x + y if self.residual else y
        for layer in self.more:
            x = layer(x)
        x = self.act(self.dropout(x) * self.buffer + self.sizes[0] * 0.1)
        x = F.max_pool2d(x, 2) if self.mode == "max" else F.avg_pool2d(x, 2)
        x = x if labels is None else x * (1 + labels[:, None, None, None])
        return self.out(x.flatten(1)).flatten()


def samples(shape: tuple[int, ...] = (3, 8, 8), counts: tuple[int, int] = (4, 4)) -> tuple[Tensor, Tensor]:
    return images(counts[0], 1, shape), images(counts[1], 2, shape)


def agree(critic: nn.Module, *pair: Tensor, **options: Any) -> None:
    assert_agrees(critic, *(pair or samples()), r1=1.0, r2=0.5, **options)


def total(critic: nn.Module) -> float:
    """A number that changes with the gradient."""
    clear(critic)
    run(critic, *samples(), LOSSES["relativistic"], method="autograd", r1=1.0)
    value = sum(p.grad.abs().sum().item() for p in critic.parameters() if p.grad is not None)
    clear(critic)
    return value


def set_scale(value: float) -> None:
    global SCALE
    SCALE = value


@pytest.fixture(autouse=True)
def _scale():
    yield
    set_scale(1.0)


def nested(critic: Adjustable, value: float) -> None:
    critic.options.slopes[1] = value


def reassigned(critic: Adjustable, value: float) -> None:
    critic.options = Options(slopes=[0.0, value])


def in_dictionary(critic: Adjustable, value: float) -> None:
    critic.options.names["gain"] = value


CHANGES: dict[str, Callable[[Adjustable], object]] = {
    "float": lambda c: setattr(c, "slope", 0.5),
    "int": lambda c: setattr(c, "repeats", 3),
    "bool": lambda c: setattr(c, "residual", True),
    "string": lambda c: setattr(c, "mode", "max"),
    "list": lambda c: c.sizes.__setitem__(0, 5),
    "nested list": lambda c: nested(c, 0.9),
    "nested object": lambda c: reassigned(c, 0.9),
    "dictionary": lambda c: in_dictionary(c, 0.5),
    "global": lambda c: set_scale(2.0),
    "function": lambda c: setattr(c, "act", lambda x: F.leaky_relu(x, 0.7)),
    "attribute of a submodule": lambda c: setattr(c.conv1, "padding", (2, 0)) or setattr(c.conv2, "padding", (0, 2)),
    "added submodule": lambda c: c.more.append(nn.Conv2d(4, 4, 1).double()),
    "replaced submodule": lambda c: setattr(c, "conv2", nn.Conv2d(4, 4, 1, bias=False).double()),
    "replaced parameter": lambda c: setattr(c.conv1, "weight", nn.Parameter(2 * c.conv1.weight.detach())),
    "parameter removed": lambda c: setattr(c.conv1, "bias", None),
    "parameter in place": lambda c: c.conv2.weight.data.mul_(1.7),
    "data of a parameter": lambda c: setattr(c.conv2.weight, "data", 1.7 * c.conv2.weight.data),
    "buffer in place": lambda c: c.buffer.mul_(1.5),
    "replaced buffer": lambda c: setattr(c, "buffer", torch.full((4, 1, 1), 0.7, dtype=F64)),
    "loaded state": lambda c: c.load_state_dict(Adjustable(seed=7).state_dict()),
    "assigned state": lambda c: c.load_state_dict(Adjustable(seed=7).state_dict(), assign=True),
    "frozen parameter": lambda c: c.conv1.weight.requires_grad_(False),
    "frozen layers": lambda c: (c.conv1.requires_grad_(False), c.out.requires_grad_(False)),
    "replaced forward": lambda c: setattr(c.conv2, "forward", lambda x: x.flip(1) * c.conv2.bias[:, None, None]),
    "parametrisation": lambda c: spectral_norm(c.conv2, n_power_iterations=1).eval(),
    "forward hook": lambda c: c.conv1.register_forward_hook(lambda module, inputs, output: 1.5 * output),
    "forward pre-hook": lambda c: c.conv2.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,)),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if i % 2 else ()) for i, n in enumerate(CHANGES)]
)
def test_a_change_is_seen(name: str):
    critic = Adjustable()
    agree(critic)
    before = total(critic)
    CHANGES[name](critic)
    assert total(critic) != before  # it is a change
    agree(critic)


@pytest.mark.long
def test_many_changes_of_one_attribute():
    """More of them than a compiler's limit of recompilations, and back to the first ones."""
    critic = Adjustable()
    for slope in [0.05 * i for i in range(10)] + [0.0, 0.05, 0.3]:
        critic.slope = slope
        agree(critic)


def test_training_and_evaluation():
    critic = Adjustable()
    critic.dropout.p = 0.4
    for _ in range(2):
        agree(critic.train())
        agree(critic.eval())


def test_requires_grad_on_and_off():
    critic = Adjustable()
    for parameter in (critic.conv1.weight, critic.conv2.bias, critic.out.weight):
        for needed in (False, True):
            parameter.requires_grad_(needed)
            agree(critic)


def test_shapes_batch_sizes_and_strides():
    critic = audio()
    spread(critic)
    for length, counts in ((64, (4, 4)), (80, (4, 4)), (64, (2, 6)), (64, (1, 1)), (64, (4, 4)), (48, (5, 5))):
        agree(critic, *samples((1, length), counts), loss=LOSSES["hinge"])
    unet = spread(UNet())
    real, fake = samples()
    agree(unet, real, fake)
    agree(unet, real.contiguous(memory_format=torch.channels_last), fake)
    agree(unet, real.transpose(2, 3), fake[:, [2, 1, 0]])
    agree(unet, torch.cat([real, real], 3)[..., ::2], fake)
    unet.to(memory_format=torch.channels_last)
    agree(unet, real, fake)


def test_penalties_and_losses_change_from_call_to_call():
    critic, pair = Adjustable(), samples()
    epsilon = torch.rand(4, dtype=F64)
    for options in (
        {"r1": 1.0},
        {"r2": 2.0},
        {"r1": 3.0, "r2": 0.1},
        {"wgan_gp": 1.0, "epsilon": epsilon},
        {"r1": 2.0},
    ):
        for loss in ("hinge", "wasserstein", "least_squares"):
            assert_agrees(critic, *pair, loss=LOSSES[loss], **options)


def test_labels_on_and_off():
    critic, labels = Adjustable(), torch.tensor([0, 1, 2, 1])
    for _ in range(2):
        agree(critic)
        agree(critic, real_labels=labels, fake_labels=labels.flip(0))


def test_labels_that_are_no_integers():
    """Soft labels are no samples: the penalty's gradient is not taken over them."""
    labels = torch.tensor([0.2, 0.9, 0.5, 0.0], dtype=F64)
    agree(Adjustable(), real_labels=labels, fake_labels=1 - labels)


def test_dtype_of_critic_and_samples():
    critic = Adjustable()
    agree(critic)
    critic.float()
    given, wanted = {}, {}
    for method, into in (("sweep", given), ("autograd", wanted)):
        clear(critic)
        pair = (x.float() for x in samples())
        run(critic, *pair, LOSSES["hinge"], method=method, r1=1.0)
        into.update(gradients(critic))
    assert_gradients(wanted, given, 1e-4)
    assert all(gradient.dtype == torch.float32 for gradient in given.values())
    critic.double()
    agree(critic)


def test_autocast_on_and_off():
    """Under autocast gradients are those of bf16, without it those of fp32."""
    critic = dcgan().float()
    pair = [images(4, seed, (3, 16, 16), torch.float32) for seed in (1, 2)]
    found: dict[tuple[bool, str], dict[str, Tensor]] = {}
    for autocast in (False, True, False, True):
        for method in ("sweep", "autograd"):
            clear(critic)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                run(critic, *pair, LOSSES["hinge"], method=method, r1=1.0, r2=1.0)
            found[autocast, method] = gradients(critic)
        assert_gradients(found[autocast, "autograd"], found[autocast, "sweep"], 0.3 if autocast else 1e-4)
        if autocast:
            with pytest.raises(AssertionError):
                assert_gradients(found[False, "sweep"], found[True, "sweep"], 1e-3)


def test_two_critics_of_one_class():
    critics = [Adjustable(seed) for seed in range(3)]
    critics[1].slope, critics[2].residual = 0.8, True
    for _ in range(2):
        for critic in critics:
            agree(critic)


@pytest.mark.long
def test_many_critics_one_after_another():
    """A new critic may sit where a dead one was."""
    for seed in range(9):
        critic = Adjustable(seed)
        critic.slope = 0.1 * seed
        agree(critic)
        del critic
        if seed % 3 == 0:
            gc.collect()


def test_copies_and_pickles_of_a_critic_that_was_swept():
    critic = r3gan()
    pair = samples((3, 16, 16))
    agree(critic, *pair)
    agree(copy.deepcopy(critic), *pair)
    again = pickle.loads(pickle.dumps(critic))
    with torch.no_grad():
        again.to_logit.weight.mul_(2)
    agree(again, *pair)
    agree(critic, *pair)
    for one, other in zip(again.modules(), r3gan().modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()  # nothing was left on it


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_a_swept_critic_is_the_same_object_for_everyone_else():
    """Its attributes, parameters and hooks; also with the old spectral norm, which keeps a tensor on the module."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        layer = torch.nn.utils.spectral_norm(nn.Conv2d(3, 2, 3))
        return nn.Sequential(layer, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(72, 1)).double()

    swept, plain = make(), make()
    for critic, method in ((swept, "sweep"), (plain, "autograd")):
        run(critic, *samples(), LOSSES["hinge"], method=method, r1=1.0)
    for one, other in zip(swept.modules(), plain.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
    x = images(2, 5)
    torch.testing.assert_close(swept(x), plain(x), rtol=1e-12, atol=1e-12)
    losses = [critic(x).sum() for critic in (swept, plain)]
    torch.autograd.backward(losses)  # autograd still works on it
    assert_gradients(gradients(plain), gradients(swept))


@pytest.mark.parametrize("method", ["sweep", "auto"])
@pytest.mark.parametrize("make", [dcgan, Adjustable])
def test_a_critic_is_freed_with_its_last_reference(make: Callable[[], nn.Module], method: str):
    critic = make()
    shape = (3, 16, 16) if make is dcgan else (3, 8, 8)
    for _ in range(2):
        run(critic, *samples(shape), LOSSES["hinge"], method=method, r1=1.0)
    watched = [weakref.ref(critic), weakref.ref(next(critic.parameters()))]
    del critic
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_a_refused_critic_is_freed_too():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.GELU(), nn.Linear(2, 1)).double()
    with pytest.warns(RuntimeWarning, match="gelu"):
        run(critic, *samples(), LOSSES["hinge"], method="auto", r1=1.0)
    watched = weakref.ref(critic)
    del critic
    gc.collect()
    assert watched() is None


def test_results_and_gradients_of_earlier_calls_stay_as_they_are():
    """No call writes into what an earlier one has returned."""
    critic = r3gan()
    pair = samples((3, 16, 16))
    first = run(critic, *pair, LOSSES["hinge"], method="sweep", r1=1.0, r2=1.0)
    kept = {name: p.grad for name, p in critic.named_parameters()}
    values = [t.clone() for t in (first.result.real_logits, first.result.loss, first.result.r1, first.result.finite)]
    clear(critic)
    run(critic, *(3 * x.flip(0) for x in pair), LOSSES["hinge"], method="sweep", r1=1.0, r2=1.0)
    assert_gradients(first.gradients, kept)
    again = first.result.real_logits, first.result.loss, first.result.r1, first.result.finite
    assert all(torch.equal(one, other) for one, other in zip(values, again, strict=True))
