"""The shared sweep against autograd in float64: the zoo, one critic per operation, and non-linear ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sweep.compare import (
    F64,
    LOSSES,
    PENALTIES,
    assert_exact,
    assert_exact_or_refused,
    gradient_errors,
    gradients,
    images,
    run,
    spread,
)
from sweep.critics import ZOO, Case, dcgan, minibatch_deviation, r3gan
from sweep.more_rules import EXACT_OR_REFUSED, RANDOM, RULES
from sweep.rules import Op, around
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

COMBINATIONS = list(itertools.product(PENALTIES, LOSSES))
SOME = ("r1+r2", "relativistic"), ("wgan_gp", "wasserstein"), ("r1", "hinge"), ("r2", "least_squares")


def every_fourth(values: Sequence[Any], ids: Sequence[str]) -> list[Any]:
    """Every fourth value is quick."""
    cases = enumerate(zip(values, ids, strict=True))
    return [pytest.param(v, id=name, marks=pytest.mark.long if i % 4 else ()) for i, (v, name) in cases]


def zoo() -> list[Any]:
    """Every critic with every penalty and loss; one combination of every other critic is quick, and three of one."""
    cases = []
    for i, name in enumerate(ZOO):
        quick = {SOME[i // 2 % 4]} if i % 2 == 0 else set()
        if name == "dcgan":
            quick |= {COMBINATIONS[5 * j] for j in (0, 2)}
        for penalty, loss in COMBINATIONS:
            marks = () if (penalty, loss) in quick else pytest.mark.long
            cases.append(pytest.param(name, penalty, loss, id=f"{name}-{penalty}-{loss}", marks=marks))
    return cases


@pytest.mark.parametrize(("name", "penalty", "loss"), zoo())
def test_zoo(name: str, penalty: str, loss: str):
    case = ZOO[name]
    expect = "sweep" if PENALTIES[penalty] else None
    options = PENALTIES[penalty] | case.options()
    assert_exact(case.make, *case.samples(), LOSSES[loss], expect=expect, **options)


def check_operations(*names: str, number: int, **options: Any) -> None:
    penalty = PENALTIES["r1+wgan_gp" if number % 5 == 4 else "r1+r2"]
    real, fake = images(4, 1, (3, 6, 6)), images(4, 2, (3, 6, 6))
    options |= penalty | {"epsilon": torch.tensor([0.2, 0.9, 0.5, 0.0], dtype=F64)}
    assert_exact(lambda: around(*(RULES[name] for name in names)), real, fake, LOSSES["least_squares"], **options)


GROUPS = [list(RULES)[i : i + 4] for i in range(0, len(RULES), 4)]


@pytest.mark.parametrize("number", every_fourth(range(len(GROUPS)), [f"{g[0]} to {g[-1]}" for g in GROUPS]))
def test_operations(number: int):
    """Four at a time, side by side in one critic; test_each_operation says which one it is."""
    check_operations(*GROUPS[number], number=number)


@pytest.mark.long
@pytest.mark.parametrize("name", RULES)
def test_each_operation(name: str):
    check_operations(name, number=list(RULES).index(name))


def test_random_operations_in_eval_mode():
    real, fake = images(4, 1, (3, 6, 6)), images(4, 2, (3, 6, 6))
    assert_exact(lambda: around(*RANDOM.values(), training=False), real, fake, LOSSES["least_squares"], r1=1.0)


@pytest.mark.parametrize("name", every_fourth(list(EXACT_OR_REFUSED), list(EXACT_OR_REFUSED)))
def test_exact_or_refused(name: str):
    real, fake = images(4, 1, (3, 6, 6)), images(4, 2, (3, 6, 6))
    make = EXACT_OR_REFUSED[name]
    assert_exact_or_refused(lambda: around(make), real, fake, loss=LOSSES["least_squares"], r1=1.0, r2=0.5)


class Deviation(nn.Module):
    """minibatch_deviation as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return minibatch_deviation(x)


def ending(*layers: nn.Module, logits: int = 1) -> Callable[[], nn.Module]:
    """A convolution, a linear layer to `logits`, and what follows it: [N, 3, 8, 8] -> [N, ...]."""

    def make() -> nn.Module:
        stem = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, logits)]
        return spread(nn.Sequential(*stem, *layers))

    return make


ENDINGS: dict[str, Callable[[], nn.Module]] = {
    "tanh": ending(nn.Tanh()),
    "sigmoid": ending(nn.Sigmoid()),
    "softplus": ending(nn.Softplus()),
    "square": ending(Op(lambda _, x: (x - 0.3).square())),
    "tanh of a vector, summed": ending(Op(lambda _, x: torch.tanh(x).sum(1)), logits=3),
    "three logits": ending(logits=3),
    "three logits, bounded": ending(Op(lambda _, x: torch.tanh(x) * 2 + x), logits=3),
    "map of 1 logit": ending(nn.Unflatten(1, (1, 1, 1))),
    "flat": ending(nn.Flatten(0)),
    "relu": ending(Op(lambda _, x: torch.relu(x + 1))),
    "clamped": ending(nn.Hardtanh(-1.0, 0.5)),
    "maps": lambda: spread(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 3, 2))),
    "maps without a kink": lambda: spread(nn.Sequential(nn.Conv2d(3, 1, 3))),
    "deviation and a linear layer": lambda: spread(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2), Deviation(), nn.Flatten(), nn.Linear(45, 1))
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_endings(name: str):
    """Several logits per sample, and functions of the logits within the critic."""
    real, fake = images(4, 1), images(4, 2)
    options = {"r1": 0.9, "r2": 1.4, "wgan_gp": 2.0, "epsilon": torch.tensor([0.2, 0.9, 0.5, 0.0], dtype=F64)}
    assert_exact(ENDINGS[name], real, fake, LOSSES["relativistic"], **options)


@pytest.mark.parametrize("name", ["style-deviation", "patch", "unet"])
def test_auto_equals_autograd(name: str):
    case = ZOO[name]
    options = PENALTIES["r1+r2"] | case.options()
    assert_exact(case.make, *case.samples(), method="auto", expect=None, **options)


@pytest.mark.parametrize("make", [dcgan, r3gan])
def test_auto_is_the_sweep_for_critics_that_it_can_do(make: Callable[[], nn.Module]):
    assert_exact(make, images(4, 1, (3, 16, 16)), images(4, 2, (3, 16, 16)), method="auto", r1=1.0, r2=1.0)


@pytest.mark.parametrize("saturated", ["none", "some", "all"])
def test_hinge_with_samples_of_zero_gradient(saturated: str):
    """Their share of the loss is 0, that of the penalty is not. A division by d loss / d logit would show here."""
    factor = {"none": 1e-3, "some": 1.0, "all": 1e4}[saturated]

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        active.append([(1 - factor * real > 0).sum().item(), (1 + factor * fake > 0).sum().item()])
        return LOSSES["hinge"](factor * real, factor * fake)

    def make() -> nn.Module:
        critic = dcgan()
        with torch.no_grad():
            critic.to_logit.bias.fill_(0.0)
        return critic

    active: list[list[int]] = []
    real, fake = images(6, 1, (3, 16, 16)), images(6, 4, (3, 16, 16))
    if saturated == "all":
        with torch.no_grad():
            logits = make()(torch.cat([real, fake])).double()
        real, fake = torch.cat([real, fake])[logits > 0], torch.cat([real, fake])[logits < 0]
        real, fake = real[:3], fake[:3]
    run(make(), real, fake, loss, r1=1.0, method="autograd")
    wanted = {"none": [6, 6], "all": [0, 0]}
    assert active[0] == wanted.get(saturated, active[0])
    assert saturated != "some" or all(0 < count < 6 for count in active[0])
    torch_loss = LOSSES["hinge"]
    options = {"r1": 1.0, "r2": 0.5, "calls": 1}
    assert_exact(make, real, fake, lambda r, f: torch_loss(factor * r, factor * f), **options)


def test_wgan_gp_where_the_gradient_is_zero():
    """A dead sample, |g| = 0: value 1, gradient 0, and no NaN from the root."""

    def make() -> nn.Module:
        critic = ending(nn.Flatten(0))()
        with torch.no_grad():
            critic[0].bias.fill_(-1.0)
        critic[1] = nn.ReLU()
        return critic

    real, fake = images(4, 1), images(4, 2)
    real[1:3], fake[1:3] = 0.0, 0.0
    options = {"wgan_gp": 10.0, "epsilon": torch.full((4,), 0.5, dtype=F64), "calls": 1}
    assert_exact(make, real, fake, LOSSES["wasserstein"], **options)
    assert_exact(make, real * 0, fake * 0, LOSSES["wasserstein"], **options)


@pytest.mark.parametrize("counts", [(3, 5), (1, 1), (4, 1)])
def test_numbers_of_samples(counts: tuple[int, int]):
    case = ZOO["unet"]
    real, fake = (images(count, seed) for count, seed in zip(counts, (1, 2), strict=True))
    assert_exact(case.make, real, fake, LOSSES["hinge"], r1=1.0, r2=0.3)


def test_large_and_small_coefficients():
    """Each part of the sum keeps its own accuracy when the other is far larger, as far as float64 holds both."""
    case = ZOO["dcgan"]
    for coefficient in (1e-6, 1e6):
        assert_exact(case.make, *case.samples(), r1=coefficient, r2=coefficient, calls=1)


def test_the_comparison_can_fail():
    """A relative error of 1e-11 in one weight gradient, or a missing one, is found."""
    case: Case = ZOO["unet"]
    critic = case.make()
    run(critic, *case.samples(), LOSSES["hinge"], r1=1.0, method="autograd")
    wanted = gradients(critic)
    for name, gradient in wanted.items():
        if gradient is not None:
            assert gradient_errors(wanted, wanted)[name] == 0
            changed = wanted | {name: gradient * (1 + 1e-11)}
            assert gradient_errors(wanted, changed)[name] > 1e-12
            with pytest.raises(AssertionError, match="only one method"):
                gradient_errors(wanted, wanted | {name: None})
