"""Kinks, fp32, bf16 and casts: the sweep against autograd, and both against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sweep.compare import F64, LOSSES, Gradients, assert_exact, clear, gradients, images, run, total_error
from sweep.critics import ZOO, Case
from sweep.rules import Op, plain
from torch import Tensor, nn
from torch.nn import functional as F


class Whole(nn.Module):
    """[N, 2, 6, 6] -> [N, 1] with whole numbers for weights: many pre-activations are exactly at a kink."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.enter, self.act = nn.Conv2d(2, 4, 3, padding=1), act.double()
        features = act(torch.zeros(1, 4, 6, 6, dtype=F64)).flatten(1).shape[1]
        self.hidden, self.out = nn.Linear(features, 6), nn.Linear(6, 1)
        self.double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(self.act(self.enter(x)).flatten(1))))


KINKS: dict[str, tuple[Callable[[], nn.Module], tuple[float, ...]]] = {
    "relu": (nn.ReLU, (0,)),
    "relu in place": (lambda: nn.ReLU(inplace=True), (0,)),
    "leaky relu": (lambda: nn.LeakyReLU(0.25), (0,)),
    "leaky relu in place": (lambda: nn.LeakyReLU(0.25, inplace=True), (0,)),
    "prelu": (lambda: nn.PReLU(4), (0,)),
    "relu6": (nn.ReLU6, (0, 6)),
    "hardtanh": (lambda: nn.Hardtanh(-1, 2), (-1, 2)),
    "clamp": (plain(lambda x: x.clamp(-1, 2)), (-1, 2)),
    "clamp below": (plain(lambda x: x.clamp(min=1)), (1,)),
    "clamp above": (plain(lambda x: x.clamp(max=-1)), (-1,)),
    "threshold": (lambda: nn.Threshold(1, 5), (1,)),
    "abs": (plain(torch.abs), (0,)),
    "where": (plain(lambda x: torch.where(x >= 1, 2 * x, x + 1)), (1,)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), ()),
    "adaptive max": (lambda: nn.AdaptiveMaxPool2d(4), ()),
    "amax": (plain(lambda x: x.amax((2, 3))), ()),
    "amin": (plain(lambda x: x.amin(1)), ()),
    "max over a dimension": (plain(lambda x: x.max(2).values), ()),
    "maxout": (plain(lambda x: torch.maximum(x[:, :2], x[:, 2:])), ()),
    "minimum": (plain(lambda x: torch.minimum(x, x.flip(3))), ()),
}


def whole(*shape: int, seed: int) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(F64)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if i % 2 else ()) for i, n in enumerate(KINKS)]
)
def test_kinks_follow_autograd(name: str):
    make, kinks = KINKS[name]
    real, fake = whole(4, 2, 6, 6, seed=1), whole(4, 2, 6, 6, seed=2)
    real[3], fake[3] = 0, 0
    reached = Whole(make()).enter(real)
    for kink in kinks:
        assert (reached == kink).sum() > 5
    options = {"r1": 1.0, "r2": 0.5, "wgan_gp": 2.0, "epsilon": torch.tensor([0.5, 0.0, 1.0, 0.5], dtype=F64)}
    assert_exact(lambda: Whole(make()), real, fake, LOSSES["least_squares"], **options)


class Narrow(nn.Module):
    """A float64 critic that works in another type in between: [N, 3, 8, 8] -> [N, 1]."""

    def __init__(self, inside: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.conv = nn.Conv2d(3, 4, 3, 2).double(), nn.Conv2d(4, 4, 2).to(inside)
        self.out = nn.Linear(16, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.enter(x), 0.2).to(self.conv.weight.dtype)
        x = F.leaky_relu(self.conv(x), 0.2).to(F64)
        return self.out(x.flatten(1))


@pytest.mark.parametrize(("inside", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 0.1)], ids=str)
def test_casts_on_the_way(inside: torch.dtype, tolerance: float):
    assert_exact(lambda: Narrow(inside), images(4, 1), images(4, 2), LOSSES["hinge"], tolerance=tolerance, r1=1.0)


def test_casts_of_weights():
    """float64 samples through weights that are kept in float32."""

    def make() -> nn.Module:
        return Op(
            lambda m, x: F.conv2d(x, m.w.to(x.dtype), m.b.double()).clamp(min=0).mean((1, 2, 3)),
            w=nn.Parameter(torch.randn(4, 3, 3, 3)),
            b=nn.Parameter(torch.randn(4)),
        )

    assert_exact(make, images(4, 1), images(4, 2), LOSSES["least_squares"], tolerance=3e-7, r1=1.0)


class Upcast(nn.Module):
    """A float64 critic of float32 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ZOO["unet"].make()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.double())


def test_float32_samples_for_a_float64_critic():
    assert_exact(Upcast, images(4, 1).float(), images(4, 2).float(), tolerance=3e-6, r1=1.0, r2=1.0)


def errors(case: Case, dtype: torch.dtype, loss: Callable[[Tensor, Tensor], Tensor], *, autocast: bool = False,
           seeds: int = 3, **options: float) -> dict[str, float]:  # fmt: skip
    """Root of the mean square over `seeds` batches of each method's error against float64, all parameters together."""
    squares = {"sweep": 0.0, "autograd": 0.0}
    exact = case.make()
    low = {method: case.make().to(torch.float32 if autocast else dtype) for method in squares}
    low["autograd"].load_state_dict(low["sweep"].state_dict())
    exact.load_state_dict(low["sweep"].state_dict())  # rounded numbers
    extra = case.options()
    for seed in range(seeds):
        real, fake = (x.to(dtype) for x in case.samples(seed + 1))
        clear(exact)
        wanted = run(exact, real.double(), fake.double(), loss, method="autograd", **extra, **options).gradients
        for method, critic in low.items():
            clear(critic)
            with torch.autocast("cpu", dtype, enabled=autocast):
                run(critic, real, fake, loss, method=method, **extra, **options)
            squares[method] += total_error(wanted, gradients(critic)) ** 2 / seeds
    return {method: square**0.5 for method, square in squares.items()}


@pytest.mark.parametrize(
    "name",
    [
        "dcgan",
        pytest.param("r3gan", marks=pytest.mark.long),
        "unet",
        pytest.param("projection", marks=pytest.mark.long),
        "patch",
    ],
)
def test_fp32_is_as_near_to_float64_as_autograd(name: str):
    found = errors(ZOO[name], torch.float32, LOSSES["relativistic"], r1=1.0, r2=1.0)
    assert found["autograd"] < 1e-2
    assert found["sweep"] <= 1.5 * found["autograd"] + 1e-6, found


@pytest.mark.parametrize("coefficient", [1e-4, 1.0, 1e4], ids=["mostly loss", "both", "mostly penalty"])
@pytest.mark.parametrize("name", ["dcgan", "style"])
def test_bf16_is_as_near_to_float64_as_autograd(name: str, coefficient: float):
    found = errors(
        ZOO[name], torch.bfloat16, LOSSES["relativistic"], autocast=True, seeds=4, r1=coefficient, r2=coefficient
    )
    assert 1e-4 < found["autograd"] < 0.3  # it is bf16 indeed
    assert found["sweep"] <= 2 * found["autograd"], found


def test_bf16_critic_without_autocast():
    found = errors(ZOO["dcgan"], torch.bfloat16, LOSSES["hinge"], r1=1.0)
    assert found["sweep"] <= 2 * found["autograd"], found


def part(wanted: Gradients, given: Gradients, direction: Gradients) -> float:
    """How far `given` - `wanted` goes along `direction`, as a multiple of it."""
    names = [name for name, gradient in wanted.items() if gradient is not None]
    along = torch.cat([direction[name].double().flatten() for name in names])
    difference = torch.cat([(given[name].double() - wanted[name]).flatten() for name in names])
    return (difference @ along / along.square().sum()).item()


@pytest.mark.parametrize("coefficient", [1e-3, 1e3], ids=["small penalty", "small loss"])
def test_bf16_keeps_the_smaller_part(coefficient: float):
    """The smaller one of loss and penalty must not drown in the rounding of their sum more than in autograd."""
    case, seeds = ZOO["dcgan"], 6
    exact, low = case.make(), case.make().float()
    loss = LOSSES["wasserstein"]
    squares = {"sweep": 0.0, "autograd": 0.0}
    for seed in range(seeds):
        real, fake = (x.float() for x in case.samples(seed + 1))
        doubles = real.double(), fake.double()

        def gradient(loss: Callable[[Tensor, Tensor], Tensor], r1: float, doubles=doubles) -> Gradients:
            clear(exact)
            return run(exact, *doubles, loss, method="autograd", r1=r1, r2=r1).gradients

        wanted, alone = gradient(loss, coefficient), gradient(loss, 0.0)
        smaller = alone if coefficient > 1 else {name: wanted[name] - alone[name] for name in wanted}
        for method in squares:
            clear(low)
            with torch.autocast("cpu", torch.bfloat16):
                given = run(low, real, fake, loss, method=method, r1=coefficient, r2=coefficient).gradients
            squares[method] += part(wanted, given, smaller) ** 2 / seeds
    found = {method: square**0.5 for method, square in squares.items()}
    assert found["sweep"] <= 2 * found["autograd"] + 0.05, found
