"""StyleGAN2's training step as it is usually arranged in plain PyTorch, on the weights of the engine's networks.

Written from the paper (Karras et al. 2020, arXiv:1912.04958): weights per sample and one convolution in N groups,
passes of their own for noise, bias, leaky ReLU and gain, a blur behind the transposed convolution, images made anew for
each player, autograd's double backward for both penalties, torch.optim.Adam with a step of its own for each lazy
penalty, and a loop for the moving average. `loop` of `peer` does one step.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.gans.stylegan2 import StyleBasedGAN
from fastgan.models.stylegan2 import Generator, StyledConv


def synthesis(generator: Generator, w: Tensor, noise: Tensor) -> Tensor:
    """Images of styles w [N, layers, style] and noise [N, noise_numbers]."""
    g = generator.synthesis
    x = g.start.permute(2, 0, 1)[None].repeat(len(w), 1, 1, 1)
    image = None
    for number, (layer, drawn) in enumerate(zip(g.layers, noise.split(g.noise_sizes, 1), strict=True)):
        x = _styled(layer, x, w[:, number], drawn)
        if number % 2 == 0:
            to_image = g.to_image[number // 2]
            style = to_image.style(w[:, number + 1]) * to_image.scale
            weight = to_image.weight[None, :, :, None, None] * style[:, None, :, None, None]
            more = _grouped(x, weight, 0) + to_image.bias[None, :, None, None]
            doubled = None if image is None else F.interpolate(image, scale_factor=2.0, mode="bilinear")
            image = more if doubled is None else doubled + more
    assert image is not None
    return image


def _styled(layer: StyledConv, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    conv, up = layer.conv, layer.conv.blur is not None
    shared = conv.weight.transpose(0, 1) if up else conv.weight
    style = conv.style(w)
    weight = shared[None] * conv.scale * style[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    if up:
        n, c, height, width = x.shape
        transposed = weight.transpose(1, 2).reshape(n * c, -1, 3, 3)
        y = F.conv_transpose2d(x.reshape(1, n * c, height, width), transposed, stride=2, groups=n)
        y = conv.blur(y.view(n, -1, *y.shape[2:]))
    else:
        y = _grouped(x, weight, 1)
    y = y + noise.view(-1, 1, *y.shape[2:]) * layer.strength
    y = y + layer.bias[None, :, None, None]
    return F.leaky_relu(y, 0.2) * math.sqrt(2)


def _grouped(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Each sample of x [N, I, H, W] with weights of its own, [N, O, I, k, k]."""
    n, _, height, width = x.shape
    y = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=padding, groups=n)
    return y.view(n, -1, *y.shape[2:])


def peer(
    system: StyleBasedGAN,
    generator: Generator,
    critic: nn.Module,
    lr: float = 2.5e-3,
    *,
    average: Generator | None = None,
    decay: float = 0.999,
) -> Callable[[Tensor], None]:
    """loop(images [N, C, S, S]), which trains the two networks by one step. average: gets their moving average, of
    weights as of styles."""
    average = average or copy.deepcopy(generator).requires_grad_(False)
    options = []
    for every in (system.path_every, system.r1_every):
        c = every / (every + 1)
        options.append({"lr": lr * c, "betas": (0.0, 0.99**c)})
    generator_adam = torch.optim.Adam(generator.parameters(), **options[0])
    critic_adam = torch.optim.Adam(critic.parameters(), **options[1])
    numbers, layers = itertools.count(), generator.synthesis.styles
    mean_length = torch.zeros(())

    def styles(count: int) -> Tensor:
        w = generator.mapping(torch.randn(count, system.latent))[:, None].repeat(1, layers, 1)
        if torch.rand(()) < system.style_mixing:
            cut = int(torch.randint(1, layers, ()))
            w[:, cut:] = generator.mapping(torch.randn(count, system.latent))[:, None]
        return w

    def draw(w: Tensor) -> Tensor:
        return synthesis(generator, w, torch.randn(len(w), generator.synthesis.noise_numbers))

    def loop(images: Tensor) -> None:
        number = next(numbers)
        generator.requires_grad_(False)
        critic.requires_grad_(True)
        loss = F.softplus(critic(draw(styles(len(images))))).mean() + F.softplus(-critic(images)).mean()
        _update(critic_adam, loss)
        if number % system.r1_every == 0:
            x = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
            _update(critic_adam, slope.square().sum((1, 2, 3)).mean() * float(system.r1) / 2 * system.r1_every)
        generator.requires_grad_(True)
        critic.requires_grad_(False)
        _update(generator_adam, F.softplus(-critic(draw(styles(len(images))))).mean())
        if number % system.path_every == 0:
            w = styles(len(images) // system.path_share)
            fake = draw(w)
            weighted = (fake * torch.randn_like(fake) / math.sqrt(fake.shape[2] * fake.shape[3])).sum()
            (slope,) = torch.autograd.grad(weighted, w, create_graph=True)
            lengths = slope.square().sum(2).mean(1).sqrt()
            mean_length.lerp_(lengths.detach().mean(), 0.01)
            penalty = (lengths - mean_length).square().mean()
            _update(generator_adam, penalty * float(system.path) * system.path_every)
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
                ours.lerp_(theirs, 1 - decay)

    return loop


def _update(adam: torch.optim.Optimizer, loss: Tensor) -> None:
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()
