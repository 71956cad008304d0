"""A conditional GAN as public collections of GANs arrange it, in plain PyTorch.

An embedding of the label beside z, another as a plane beside the image, the networks of DCGAN for 64x64 pixels, binary
cross-entropy, Adam (0.5, 0.999), fakes with random labels, the generator first, no penalty, no average of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fastgan.contract import Batch

SIZE, LATENT = 64, 100


class PlainGenerator(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, LATENT)
        layers: list[nn.Module] = []
        before = 2 * LATENT
        for i, channels in enumerate((8 * width, 4 * width, 2 * width, width)):
            layers.append(nn.ConvTranspose2d(before, channels, 4, 2 if i else 1, 1 if i else 0, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU(True)]
            before = channels
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([z, self.label(labels)], 1)[:, :, None, None])
        return out


class PlainCritic(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, SIZE * SIZE)
        layers: list[nn.Module] = []
        before = 4
        for i, channels in enumerate((width, 2 * width, 4 * width, 8 * width)):
            layers.append(nn.Conv2d(before, channels, 4, 2, 1, bias=not i))
            layers += [nn.BatchNorm2d(channels)] if i else []
            layers.append(nn.LeakyReLU(0.2, True))
            before = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        plane = self.label(labels).view(-1, 1, SIZE, SIZE)
        out: Tensor = self.layers(torch.cat([x, plane], 1))
        return out.flatten()


class PlainLoop:
    """loop(batch) trains both networks by one step."""

    def __init__(self, classes: int, width: int, lr: float = 2e-4) -> None:
        torch.manual_seed(0)
        self.classes = classes
        self.generator, self.critic = PlainGenerator(classes, width), PlainCritic(classes, width)
        for module in (*self.generator.modules(), *self.critic.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0.0, 0.02)
        for network in (self.generator, self.critic):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.of_generator, self.of_critic = (
            torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999))
            for network in (self.generator, self.critic)
        )

    def __call__(self, batch: Batch) -> None:
        assert batch.labels is not None
        count = len(batch.images)
        one, zero = torch.ones(count), torch.zeros(count)
        asked = torch.randint(self.classes, (count,))
        fake = self.generator(torch.randn(count, LATENT), asked)
        self.of_generator.zero_grad()
        binary_cross_entropy_with_logits(self.critic(fake, asked), one).backward()
        self.of_generator.step()
        self.of_critic.zero_grad()
        on_real = binary_cross_entropy_with_logits(self.critic(batch.images, batch.labels), one)
        on_fake = binary_cross_entropy_with_logits(self.critic(fake.detach(), asked), zero)
        ((on_real + on_fake) / 2).backward()
        self.of_critic.step()

    @torch.no_grad()
    def sample(self, labels: Tensor) -> Tensor:
        """Images [N, 3, 64, 64] of the classes `labels` [N], in evaluation mode."""
        self.generator.eval()
        z = torch.randn(len(labels), LATENT, generator=torch.Generator().manual_seed(1))
        images = torch.cat([self.generator(*part) for part in zip(z.split(64), labels.split(64), strict=True)])
        self.generator.train()
        return images
