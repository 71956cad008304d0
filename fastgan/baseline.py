"""The training step in plain PyTorch, as a careful user writes it: what the engine is measured against.

`tidy` takes ready networks and returns `loop(images, latents)`, which does one whole training step: critic, generator,
and the generator's moving average. Images are [N, C, H, W], latents [N, latent].
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import models
from fastgan.contract import System
from fastgan.optim import Averaging, Optimizer
from fastgan.schedule import first

Loop = Callable[..., None]
KNOWN_LOSSES = ("non_saturating", "relativistic", "wasserstein", "hinge")


@dataclass(frozen=True)
class Recipe:
    """What a loop has to know besides the networks.

    loss:          one of KNOWN_LOSSES
    r1, r2:        gamma in gamma/2 * mean_n |grad D|^2 on reals, on fakes
    wgan_gp:       lambda in lambda * mean_n (|grad D| - 1)^2 on interpolates
    critic_steps:  critic updates per step, each on a part of the images and latents
    penalty_every: penalties in every k-th step only, k times as strong
    decay:         of the generator's moving average, per step
    """

    loss: str
    r1: float
    r2: float
    penalty_every: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    wgan_gp: float = 0.0
    critic_steps: int = 1


def tidy(
    generator: nn.Module,
    average: nn.Module,
    critic: nn.Module,
    recipe: Recipe,
    gradients: Callable[..., Sequence[Tensor]] | None = None,
) -> Loop:
    """A careful user's loop.

    Fakes made once for both players, critic frozen in the generator's turn, fused Adam, gradients set to
    None, moving average in one call, nothing read back from the device.

    gradients: the critic's, of (x, fakes, strength, epsilon) as in `objective`; None: by backward()
    """
    options: Any = {"lr": recipe.lr, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps, "fused": True}
    critic_adam = torch.optim.Adam(critic.parameters(), **options)
    generator_adam = torch.optim.Adam(generator.parameters(), **options)
    averages, values = averaged_tensors(average), averaged_tensors(generator)
    numbers = itertools.count()

    def loop(images: Tensor, latents: Tensor, epsilon: Tensor | None = None) -> None:
        strength = recipe.penalty_every if next(numbers) % recipe.penalty_every == 0 else 0
        count = recipe.critic_steps
        weights = [None] * count if epsilon is None else epsilon.chunk(count)
        for number, (x, z, weight) in enumerate(zip(images.chunk(count), latents.chunk(count), weights, strict=True)):
            with torch.set_grad_enabled(number == count - 1):  # the last fakes serve the generator too
                fakes = generator(z)
            critic_adam.zero_grad(set_to_none=True)
            if gradients is None:
                torch.autograd.backward(objective(critic, recipe, x, fakes.detach(), strength, weight))
            else:
                found = gradients(x, fakes.detach(), strength, weight)
                for parameter, grad in zip(critic.parameters(), found, strict=True):
                    # Fused Adam walks both as they lie in memory, and autograd.grad has any layout.
                    same = grad.stride() == parameter.stride()
                    parameter.grad = grad if same else torch.empty_like(parameter).copy_(grad)
            critic_adam.step()

        critic.requires_grad_(False)
        generator_adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            real = critic(x) if recipe.loss == "relativistic" else x  # where it is not read
        torch.autograd.backward(generator_loss(recipe, real, critic(fakes)))
        generator_adam.step()
        critic.requires_grad_(True)

        with torch.no_grad():
            torch._foreach_lerp_(averages, values, 1 - recipe.decay)

    return loop


def objective(
    critic: nn.Module, recipe: Recipe, x: Tensor, fakes: Tensor, strength: int, epsilon: Tensor | None
) -> Tensor:
    """The critic's loss and its penalties, those `strength` times as strong."""
    real, r1 = logits_and_penalty(critic, x, strength * recipe.r1)
    fake, r2 = logits_and_penalty(critic, fakes, strength * recipe.r2)
    between = interpolate_penalty(critic, x, fakes, strength * recipe.wgan_gp, epsilon)
    return critic_loss(recipe, real, fake) + r1 + r2 + between


# What torch.compile can be given, best first.
ARRANGEMENTS = ("generator + critic", "generator + critic's step", "generator")


def arrangements_of(system: Any) -> tuple[str, ...]:
    """Those that can work: what is compiled network by network is not differentiated twice, as penalties ask for."""
    return ARRANGEMENTS[1:] if system.penalties else ARRANGEMENTS


def compiled_loop(
    what: str, generator: nn.Module, average: nn.Module, critic: nn.Module, recipe: Recipe, device: str
) -> Loop:
    """`tidy` with one of ARRANGEMENTS, or "" for none, compiled, on a GPU with measured choices."""
    mode = "max-autotune-no-cudagraphs" if device == "cuda" else "default"
    made: list[Any] = [
        torch.compile(network, mode=mode) if name in what.split(" + ") else network
        for name, network in (("generator", generator), ("critic", critic))
    ]
    gradients = compiled_gradients(critic, recipe, mode) if what.endswith("critic's step") else None
    return tidy(made[0], average, made[1], recipe, gradients)


def compiled_gradients(critic: nn.Module, recipe: Recipe, mode: str) -> Callable[..., Sequence[Tensor]]:
    """The gradient of `objective` as one compiled graph, penalties differentiated twice within it (torch 2.13 on)."""
    import torch._dynamo

    parameters = list(critic.parameters())
    allowed: Any = torch._dynamo.config.patch(trace_autograd_ops=True)  # once: each stays in the thread's context

    @torch.compile(fullgraph=True, dynamic=False, mode=mode)
    def compiled(x: Tensor, fakes: Tensor, strength: int, epsilon: Tensor | None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(objective(critic, recipe, x, fakes, strength, epsilon), parameters)

    def gradients(x: Tensor, fakes: Tensor, strength: int, epsilon: Tensor | None) -> tuple[Tensor, ...]:
        if fakes.stride() != x.stride():  # a generator may give another layout, over which Inductor stumbles
            fakes = torch.empty_like(x).copy_(fakes)
        with allowed:
            return compiled(x, fakes, strength, epsilon)

    return gradients


def averaged_tensors(module: nn.Module) -> list[Tensor]:
    """Weights and running statistics: what the moving average follows."""
    return [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]


def logits_and_penalty(critic: nn.Module, x: Tensor, gamma: float) -> tuple[Tensor, Tensor | float]:
    """D(x) [N], and gamma/2 * mean_n |grad D(x_n)|^2 where gamma is not 0 (Mescheder 2018)."""
    if not gamma:
        return critic(x), 0.0
    x = x.detach().requires_grad_()
    logits = critic(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return logits, gamma / 2 * gradient.square().flatten(1).sum(1).mean()


def interpolate_penalty(
    critic: nn.Module, x: Tensor, fakes: Tensor, weight: float, epsilon: Tensor | None
) -> Tensor | float:
    """lambda * mean_n (|grad D(x~_n)| - 1)^2 at random interpolates (Gulrajani 2017), where lambda is not 0."""
    if not weight:
        return 0.0
    if epsilon is None:
        epsilon = torch.rand(len(x), device=x.device, dtype=x.dtype)
    between = torch.lerp(fakes, x, epsilon.view(-1, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = weight * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def critic_loss(recipe: Recipe, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the critic from its logits [N] on reals and fakes."""
    if recipe.loss == "relativistic":
        return -F.logsigmoid(real - fake).mean()
    if recipe.loss == "wasserstein":
        return fake.mean() - real.mean()
    if recipe.loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return -F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()


def generator_loss(recipe: Recipe, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the generator from the critic's logits [N]."""
    if recipe.loss == "relativistic":
        return -F.logsigmoid(fake - real).mean()
    if recipe.loss in ("wasserstein", "hinge"):
        return -fake.mean()
    return -F.logsigmoid(fake).mean()


def adam_of(options: Optimizer, module: nn.Module, *, fused: bool = True) -> torch.optim.Adam:
    """PyTorch's Adam with these options, at the start of their schedules."""
    lr, beta1, beta2 = (first(value) for value in (options.lr, options.beta1, options.beta2))
    return torch.optim.Adam(module.parameters(), lr=lr, betas=(beta1, beta2), eps=options.eps, fused=fused)


def recipe_of(system: Any, optimizer: Optimizer, averaging: Averaging, batch: int) -> Recipe:
    """What a plain loop has to know of an unconditional GAN, at the start of its schedules."""
    r1, r2, wgan_gp = (first(value) for value in (system.r1, system.r2, system.wgan_gp))
    lr, beta1, beta2 = (first(value) for value in (optimizer.lr, optimizer.beta1, optimizer.beta2))
    images = batch * system.critic_steps
    decay = 2.0 ** (-images / (averaging.halflife_kimg * 1000)) if averaging.halflife_kimg else 0.0
    return Recipe(
        loss=system.loss,
        r1=r1,
        r2=r2,
        penalty_every=system.penalty_every,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=optimizer.eps,
        decay=decay,
        wgan_gp=wgan_gp,
        critic_steps=system.critic_steps,
    )


@contextmanager
def unfused() -> Iterator[None]:
    """Networks made within consist of PyTorch's own layers."""
    plain = {"fuse": lambda network: network, "Conv2d": nn.Conv2d}
    families: list[Any] = list(vars(models).values())
    before = [(family, name, getattr(family, name)) for family in families for name in plain if hasattr(family, name)]
    try:
        for family, name, _ in before:
            setattr(family, name, plain[name])
        yield
    finally:
        for family, name, ours in before:
            setattr(family, name, ours)


def plain_players(system: System, image: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Generator, its average, and critic, of PyTorch's own layers."""
    with unfused():
        players = system.players(image)
    generator, critic = players["generator"], players["critic"]
    return generator, copy.deepcopy(generator).requires_grad_(False), critic
