"""Paired translation, inpainting and super-resolution as usually arranged in plain PyTorch, written from the papers.

Layers of PyTorch's own, one generator pass per step whose detached result the critic sees first, binary cross-entropy,
two torch.optim.Adam.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss

from fastgan.models.srresnet import reduced


def unfused(module: nn.Module) -> nn.Module:
    """A copy that computes layer by layer, as PyTorch does."""
    made = copy.deepcopy(module)
    for part in made.modules():
        original = getattr(type(part), "_fastgan_original", None)
        if original is not None:
            part.__class__ = original
    return made


def _against(logits: Tensor, wanted: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))


def _adams(*modules: nn.Module, betas: tuple[float, float], lr: float = 1e-3) -> list[torch.optim.Adam]:
    return [torch.optim.Adam(module.parameters(), lr=lr, betas=betas) for module in modules]


def _set_rate(adams: Sequence[torch.optim.Adam], rate: float) -> None:
    for adam in adams:
        adam.param_groups[0]["lr"] = rate


def _train_critic(
    critic: nn.Module, adam: torch.optim.Adam, fake: Sequence[Tensor], real: Sequence[Tensor], share: float = 1.0
) -> None:
    """A step of the critic, which is frozen afterwards. fake, real: what it is given of each."""
    critic.requires_grad_(True)
    adam.zero_grad()
    ((_against(critic(*fake), 0.0) + _against(critic(*real), 1.0)) * share).backward()
    adam.step()
    critic.requires_grad_(False)


@dataclass
class PlainTranslation:
    """pix2pix (Isola et al. 2017). share: of the critic's loss, which the paper halves"""

    generator: nn.Module
    critic: nn.Module
    lr: float
    share: float = 0.5
    adams: list[torch.optim.Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.adams = _adams(self.generator, self.critic, betas=(0.5, 0.999), lr=self.lr)

    def __call__(self, source: Tensor, target: Tensor) -> None:
        of_generator, of_critic = self.adams
        fake = self.generator(source)
        _train_critic(self.critic, of_critic, (fake.detach(), source), (target, source), self.share)
        of_generator.zero_grad()
        (_against(self.critic(fake, source), 1.0) + 100 * l1_loss(fake, target)).backward()
        of_generator.step()


@dataclass
class PlainInpainting:
    """Inpainting with one critic (Pathak et al. 2016): a hole comes in the mean colour of the rest, and the network's
    output is put there.

    lr: of the progress of the run, from 0 to 1;  weights: of the reconstruction within the hole, outside of it, and of
    the critic
    """

    generator: nn.Module
    critic: nn.Module
    lr: Callable[[float], float]
    fill: Callable[[Tensor, Tensor], Tensor]
    steps: int
    weights: tuple[float, float, float] = (10.0, 1.0, 0.1)
    done: int = 0
    adams: list[torch.optim.Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.adams = _adams(self.generator, self.critic, betas=(0.5, 0.999))

    def raw(self, images: Tensor, masks: Tensor) -> Tensor:
        made: Tensor = self.generator(torch.cat([self.fill(images, masks), masks], 1))
        return made

    def inpaint(self, images: Tensor, masks: Tensor) -> Tensor:
        return torch.where(masks > 0, self.raw(images, masks), images)

    def __call__(self, images: Tensor, masks: Tensor) -> None:
        _set_rate(self.adams, self.lr(self.done / self.steps))
        self.done += 1
        of_generator, of_critic = self.adams
        made = self.raw(images, masks)
        filled = torch.where(masks > 0, made, images)
        _train_critic(self.critic, of_critic, (filled.detach(), masks), (images, masks))
        of_generator.zero_grad()
        difference = (made - images).abs()
        within, outside = (difference * masks).mean() / masks.mean(), (difference * (1 - masks)).mean()
        terms = within, outside / (1 - masks).mean(), _against(self.critic(filled, masks), 1.0)
        sum(weight * term for weight, term in zip(self.weights, terms, strict=True)).backward()
        of_generator.step()


@dataclass
class PlainSuperResolution:
    """SRGAN (Ledig et al. 2017) without the VGG19 term. adversarial, lr: of the progress of the run, from 0 to 1"""

    generator: nn.Module
    critic: nn.Module
    scale: int
    lr: Callable[[float], float]
    adversarial: Callable[[float], float]
    pixel: Callable[[Tensor, Tensor], Tensor]
    steps: int
    done: int = 0
    adams: list[torch.optim.Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.adams = _adams(self.generator, self.critic, betas=(0.9, 0.999))

    def __call__(self, images: Tensor) -> None:
        progress = self.done / self.steps
        self.done += 1
        _set_rate(self.adams, self.lr(progress))
        of_generator, of_critic = self.adams
        fake = self.generator(reduced(images, self.scale, "bicubic"))
        _train_critic(self.critic, of_critic, (fake.detach(),), (images,))
        of_generator.zero_grad()
        (self.pixel(fake, images) + self.adversarial(progress) * _against(self.critic(fake), 1.0)).backward()
        of_generator.step()
