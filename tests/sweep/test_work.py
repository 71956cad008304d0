"""Counted work: multiplications of convolutions and products, host reads, and captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_reads import NoHostReads
from sweep.compare import LOSSES, images, run, small, spread
from sweep.critics import dcgan, r3gan
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

COUNT = 4


def convolutions() -> nn.Module:
    """[N, 3, 16, 16] -> [N, 1]: the first and the last layer are a small part of it."""
    return spread(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 16, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(16, 16, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
            nn.Linear(256, 1),
        )
    )


CRITICS = {"dcgan": dcgan, "r3gan": r3gan, "convolutions": convolutions}


class Multiplications(TorchDispatchMode):
    """Counts those of convolutions and products of matrices.

    torch.utils.flop_counter counts the weight gradient of a grouped convolution as if it had no groups.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aten, packet = torch.ops.aten, func.overloadpacket
        if packet is aten.convolution:
            x, weight, transposed = args[0], args[1], args[6]
            self.total += (x if transposed else out).numel() * weight[0].numel()
        elif packet is aten.convolution_backward:
            grad, x, weight, transposed, needed = *args[:3], args[7], args[10]
            self.total += (x if transposed else grad).numel() * weight[0].numel() * sum(needed[:2])
        elif packet in (aten.mm, aten.bmm, aten.mv, aten.dot):
            self.total += out.numel() * args[0].shape[-1]
        elif packet in (aten.addmm, aten.baddbmm):
            self.total += out.numel() * args[1].shape[-1]
        return out


def flops(call: Callable[[], Any]) -> int:
    with Multiplications() as counter:
        call()
    return counter.total


def first_layer(critic: nn.Module, x: Tensor) -> int:
    """The work of one forward pass of the layers that see the samples themselves."""
    found: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0] is x and not list(module.children()):
            found.append(flops(lambda: type(module).forward(module, x)))

    hooks = [module.register_forward_pre_hook(count) for module in critic.modules()]
    with torch.no_grad():
        critic(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


def counted(name: str, method: str, **penalties: float) -> tuple[int, int, int]:
    """Work of a call after the capture, of F, one forward pass of one batch, and of the first layer's share of F."""
    critic = CRITICS[name]()
    real, fake = images(COUNT, 1, (3, 16, 16)), images(COUNT, 2, (3, 16, 16))
    loss = LOSSES["hinge"]
    for seed in range(2):  # the second, since .grad is there by then
        run(critic, real, fake, loss, seed=seed, method=method, **penalties)
    total = flops(lambda: run(critic, real, fake, loss, method=method, **penalties))
    with torch.no_grad():
        forward = flops(lambda: critic(real))
    return total, forward, first_layer(critic, real)


UNITS = [
    ("convolutions", {"r1": 1.0}, 7, 1),
    ("convolutions", {"r2": 1.0}, 7, 1),
    ("convolutions", {"r1": 1.0, "r2": 1.0}, 8, 0),
    ("convolutions", {"wgan_gp": 1.0}, 10, 2),
    ("dcgan", {"r1": 1.0}, 7, 1),
    ("dcgan", {"r1": 1.0, "r2": 1.0}, 8, 0),
    ("dcgan", {"wgan_gp": 1.0}, 10, 2),
    ("r3gan", {"r1": 1.0, "r2": 1.0}, 8, 0),
]


@pytest.mark.parametrize(("name", "penalties", "units", "plain_batches"), UNITS, ids=str)
def test_units_of_work(name: str, penalties: dict[str, float], units: int, plain_batches: int):
    """R1 7 F, R1 + R2 8 F, WGAN-GP 10 F for a step on real and fake.

    Each penalised batch takes 4 F: forward, input gradient, forward, weight gradient. A batch without a penalty takes
    3 F less the input gradient of its first layer, which nothing needs. The logits of the second forward pass need not
    be computed, so that up to one last layer (small here) is less.
    """
    total, forward, first = counted(name, "sweep", **penalties)
    most = units * forward - plain_batches * first
    assert 0.97 * most <= total <= 1.001 * most  # above it: the gradient of a bias may be a product, of N by C


@pytest.mark.parametrize("name", CRITICS)
def test_units_of_work_of_autograd(name: str):
    """What the sweep is compared with: plain 6 F, R1 9 F, R1 + R2 12 F, WGAN-GP 12 F.

    Less the input gradients of first layers and the weight gradients of fixed filters.
    """
    for penalties, units in (({}, 6), ({"r1": 1.0}, 9), ({"r1": 1.0, "r2": 1.0}, 12), ({"wgan_gp": 1.0}, 12)):
        total, forward, first = counted(name, "autograd", **penalties)
        assert 0.95 * units * forward - 4 * first <= total <= units * forward, penalties


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("names", [("r1",), ("r1", "r2"), ("wgan_gp",), ("r1", "r2", "wgan_gp")], ids=str)
def test_nothing_is_read_on_the_host_after_the_capture(names: tuple[str, ...], as_tensor: bool):
    critic, real, fake = small(), images(4, 1), images(4, 2)
    options = dict.fromkeys(names, torch.tensor(2.0) if as_tensor else 2.0)
    loss = LOSSES["relativistic"]
    first = run(critic, real, fake, loss, method="sweep", **options)
    for seed in range(2):
        with NoHostReads():
            again = run(critic, real, fake, loss, seed=seed, method="sweep", **options)
        assert again.result.method == "sweep"
    assert torch.equal(first.result.real_logits, again.result.real_logits)
    with pytest.raises(AssertionError, match="reads on the host"), NoHostReads():
        real.sum().item()


def test_one_capture_is_enough():
    """Other numbers, other weights, gradients that are there, another loss, other coefficients: no new capture."""
    critic, real, fake = small(), images(4, 1), images(4, 2)
    run(critic, real, fake, LOSSES["hinge"], method="sweep", r1=1.0, r2=1.0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed, loss in enumerate(LOSSES.values()):
            options = {"r1": 0.5**seed, "r2": torch.tensor(2.0 + seed)}
            run(critic, real + seed, fake * 2, loss, seed=seed, method="sweep", **options)
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.sub_(0.01 * parameter.grad)
        other = images(5, 3)
        with pytest.raises(RuntimeError):
            run(critic, other, other, LOSSES["hinge"], method="sweep", r1=1.0, r2=1.0)
