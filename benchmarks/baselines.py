"""The training steps that the engine is measured against: the careful user's (fastgan.baseline), and a tutorial's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.baseline import Loop, Recipe, plain_players, recipe_of, tidy

__all__ = ["Loop", "Recipe", "plain_players", "recipe_of", "tidy", "tutorial"]


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
