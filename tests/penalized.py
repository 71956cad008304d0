"""Small critics, and the gradients of their penalised losses by an independent second derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

F64 = torch.float64


class ConvCritic(nn.Module):
    """[N, 2, 8, 8] -> [N]; kinked and smooth layers, so that the second derivative has every kind of term."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 4, stride=2, padding=1)
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.conv1(x), 0.2, inplace=True)
        return self.out(torch.tanh(self.conv2(x)).flatten(1)).flatten()


class PairCritic(nn.Module):
    """(x [N, 6], y [N, 3, 2], index [N] int64, labels [N] int64) -> [N, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(12, 8), nn.Linear(8, 1)
        self.index, self.label = nn.Embedding(5, 8), nn.Embedding(5, 8)

    def forward(self, x: Tensor, y: Tensor, index: Tensor, labels: Tensor | None = None) -> Tensor:
        features = torch.tanh(self.hidden(torch.cat([x, y.flatten(1)], 1)) * self.index(index))
        logits = self.out(features)
        return logits if labels is None else logits + (features * self.label(labels)).sum(1, keepdim=True)


class Linear(nn.Module):
    """D(x) = <w, x> + b."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros((), dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias


class Quadratic(nn.Module):
    """D(x) = a/2 |x|^2."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a / 2 * x.square().flatten(1).sum(1)


def nothing(real: Tensor, fake: Tensor) -> Tensor:
    """A loss without gradient, which leaves the penalties alone."""
    return 0 * (real.sum() + fake.sum())


def images(count: int, seed: int, shape: tuple[int, ...] = (2, 8, 8)) -> Tensor:
    return torch.randn(count, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def conv_critic() -> ConvCritic:
    torch.manual_seed(0)
    return ConvCritic().double()


def gradients(critic: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in critic.named_parameters()}


def expected(
    critic: nn.Module,
    real: tuple[Tensor, ...],
    fake: tuple[Tensor, ...],
    loss: Callable[..., Tensor],
    *,
    r1: float = 0.0,
    r2: float = 0.0,
    wgan_gp: float = 0.0,
    epsilon: Tensor | None = None,
    real_labels: tuple[Tensor, ...] = (),
    fake_labels: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """The gradients by torch.func: each sample's input gradient from a critic that sees this sample only."""

    def squares(weights: dict[str, Tensor], inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        floating = [i for i, x in enumerate(inputs) if x.is_floating_point()]

        def one(*sample: Tensor) -> Tensor:
            return functional_call(critic, weights, tuple(x[None] for x in sample)).sum()

        per_sample = vmap(grad(one, argnums=tuple(floating)))(*inputs, *labels)
        return sum(g.flatten(1).square().sum(1) for g in per_sample)

    def total(weights: dict[str, Tensor]) -> Tensor:
        logits = (functional_call(critic, weights, x) for x in ((*real, *real_labels), (*fake, *fake_labels)))
        value = loss(*logits)
        if r1:
            value = value + r1 / 2 * squares(weights, real, real_labels).mean()
        if r2:
            value = value + r2 / 2 * squares(weights, fake, fake_labels).mean()
        if wgan_gp:
            weight = [epsilon.view(-1, *[1] * (x.ndim - 1)) for x in real]
            between = tuple(
                e * x + (1 - e) * y if x.is_floating_point() else x for e, x, y in zip(weight, real, fake, strict=True)
            )
            norms = squares(weights, between, real_labels).sqrt()
            value = value + wgan_gp * (norms - 1).square().mean()
        return value

    return grad(total)({name: p.detach() for name, p in critic.named_parameters()})  # fmt: skip


def assert_gradients(critic: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name, gradient in gradients(critic).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
