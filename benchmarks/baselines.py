"""The training steps that the engine is measured against: a careful loop (fastgan.baseline), a tutorial's, R3GAN's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.baseline import (
    ARRANGEMENTS,
    Loop,
    Recipe,
    arrangements_of,
    compiled_loop,
    plain_players,
    recipe_of,
    tidy,
)

__all__ = [
    "ARRANGEMENTS",
    "Loop",
    "Recipe",
    "arrangements_of",
    "compiled_loop",
    "plain_players",
    "r3gan_arrangement",
    "recipe_of",
    "tidy",
    "tutorial",
]


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


def r3gan_arrangement(generator: nn.Module, average: nn.Module, critic: nn.Module, recipe: Recipe) -> Loop:
    """A step arranged as in the public R3GAN code (brownvc/R3GAN), on our networks of PyTorch's own layers.

    What is alike: each player makes fakes of its own; the critic sees reals and fakes in two calls, one autograd.grad
    of each for R1 and R2 and one backward for all; the other player frozen; gradients made finite in one flat tensor;
    Adam as it comes; a Python loop for the moving average; NCHW. What is not: the latents of the generator's turn are
    those of the critic's, there is no augmentation, and none of its operators.
    """
    assert recipe.loss == "relativistic"
    options = {"lr": recipe.lr, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    critic_adam = torch.optim.Adam(critic.parameters(), **options)
    generator_adam = torch.optim.Adam(generator.parameters(), **options)

    def update(module: nn.Module, adam: torch.optim.Adam) -> None:
        trained = [p for p in module.parameters() if p.grad is not None]
        flat = torch.nan_to_num(torch.cat([p.grad.flatten() for p in trained]), posinf=1e5, neginf=-1e5)  # type: ignore[union-attr]
        for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = grad.reshape(p.shape)
        adam.step()
        adam.zero_grad()

    def loop(images: Tensor, latents: Tensor) -> None:
        generator.requires_grad_(False)
        critic.requires_grad_(True)
        x, fakes = images.detach().requires_grad_(), generator(latents).detach().requires_grad_()
        real, fake = critic(x), critic(fakes)
        penalties = [
            torch.autograd.grad(logits.sum(), samples, create_graph=True)[0].square().sum([1, 2, 3])
            for logits, samples in ((real, x), (fake, fakes))
        ]
        loss = torch.nn.functional.softplus(fake - real)
        total = loss + recipe.r1 / 2 * penalties[0] + recipe.r2 / 2 * penalties[1]
        torch.autograd.backward(total.mean())
        update(critic, critic_adam)

        critic.requires_grad_(False)
        generator.requires_grad_(True)
        fakes = generator(latents)
        torch.autograd.backward(torch.nn.functional.softplus(critic(images) - critic(fakes)).mean())
        update(generator, generator_adam)
        critic.requires_grad_(True)

        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
                ours.copy_(theirs.lerp(ours, recipe.decay))
            for ours, theirs in zip(average.buffers(), generator.buffers(), strict=True):
                ours.copy_(theirs)

    return loop
