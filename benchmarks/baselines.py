"""The same training steps in plain PyTorch, as people write them: what the engine is measured against.

Each function takes ready networks and returns `loop(images, latents)`, which does one whole training step:
critic, generator, and the generator's moving average. Images are [N, C, H, W], latents [N, latent].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loop = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Recipe:
    """What a loop has to know besides the networks.

    loss:          "non_saturating", "relativistic", "wasserstein" or "hinge"
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


def tidy(generator: nn.Module, average: nn.Module, critic: nn.Module, recipe: Recipe) -> Loop:
    """A careful user's loop.

    Fakes made once for both players, critic frozen in the generator's turn, fused Adam, gradients set to
    None, moving average in one call, nothing read back from the device.
    """
    options = {"lr": recipe.lr, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps, "fused": True}
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
            real, r1 = logits_and_penalty(critic, x, strength * recipe.r1)
            fake, r2 = logits_and_penalty(critic, fakes.detach(), strength * recipe.r2)
            between = interpolate_penalty(critic, x, fakes.detach(), strength * recipe.wgan_gp, weight)
            (critic_loss(recipe, real, fake) + r1 + r2 + between).backward()
            critic_adam.step()

        critic.requires_grad_(False)
        generator_adam.zero_grad(set_to_none=True)
        if recipe.loss == "relativistic":
            with torch.no_grad():
                real = critic(x)
        generator_loss(recipe, real, critic(fakes)).backward()
        generator_adam.step()
        critic.requires_grad_(True)

        with torch.no_grad():
            torch._foreach_lerp_(averages, values, 1 - recipe.decay)

    return loop


def tutorial(generator: nn.Module, average: nn.Module, critic: nn.Module, recipe: Recipe) -> Loop:
    """The loop of many tutorials and repositories, for the non-saturating loss without penalties.

    Label tensors, one backward pass for reals and one for fakes, critic not frozen, Adam as it comes, losses
    read back for the log in every step, a Python loop for the moving average.
    """
    assert recipe.loss == "non_saturating"
    assert recipe.r1 == recipe.r2 == 0
    criterion = nn.BCEWithLogitsLoss()
    options = {"lr": recipe.lr, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    critic_adam = torch.optim.Adam(critic.parameters(), **options)
    generator_adam = torch.optim.Adam(generator.parameters(), **options)
    log = {}

    def loop(images: Tensor, latents: Tensor) -> None:
        critic.zero_grad()
        label = torch.full((len(images),), 1.0, dtype=images.dtype, device=images.device)
        output = critic(images)
        real_loss = criterion(output, label)
        real_loss.backward()
        log["real"] = output.mean().item()

        fakes = generator(latents)
        label.fill_(0.0)
        output = critic(fakes.detach())
        fake_loss = criterion(output, label)
        fake_loss.backward()
        log["fake"] = output.mean().item()
        log["critic"] = (real_loss + fake_loss).item()
        critic_adam.step()

        generator.zero_grad()
        label.fill_(1.0)
        output = critic(fakes)
        loss = criterion(output, label)
        loss.backward()
        log["generator"] = loss.item()
        generator_adam.step()

        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
                ours.mul_(recipe.decay).add_(theirs, alpha=1 - recipe.decay)
            for ours, theirs in zip(average.buffers(), generator.buffers(), strict=True):
                ours.copy_(theirs)

    return loop


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


def interpolate_penalty(critic: nn.Module, x: Tensor, fakes: Tensor, weight: float, epsilon: Tensor | None):
    """lambda * mean_n (|grad D(x~_n)| - 1)^2 at random interpolates (Gulrajani 2017), where lambda is not 0."""
    if not weight:
        return 0.0
    if epsilon is None:
        epsilon = torch.rand(len(x), device=x.device, dtype=x.dtype)
    between = torch.lerp(fakes, x, epsilon.view(-1, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return weight * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def critic_loss(recipe: Recipe, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the critic from its logits [N] on reals and fakes."""
    if recipe.loss == "relativistic":
        return F.softplus(fake - real).mean()
    if recipe.loss == "wasserstein":
        return fake.mean() - real.mean()
    if recipe.loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(recipe: Recipe, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the generator from the critic's logits [N]."""
    if recipe.loss == "relativistic":
        return F.softplus(real - fake).mean()
    if recipe.loss in ("wasserstein", "hinge"):
        return -fake.mean()
    return F.softplus(-fake).mean()
