"""StyleGAN2's training step in plain PyTorch, on the weights of the engine's networks.

Written from the paper (Karras et al. 2020, arXiv:1912.04958): weights per sample and one convolution in N groups,
passes of their own for noise, bias, leaky ReLU and gain, a blur behind the transposed convolution, autograd's double
backward for both penalties, torch.optim.Adam with a step of its own for each lazy penalty, and a moving average.
`plain` makes a loop that does one step: tidy, as a careful user writes it, else as public code is arranged, which makes
images anew for each player.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.baseline import adam_of
from fastgan.gans.stylegan2 import StyleBasedGAN
from fastgan.models.stylegan2 import Generator, StyledConv
from fastgan.optim import Optimizer
from fastgan.schedule import first

# What torch.compile can be given, best first. It does not differentiate twice: both penalties stay eager.
ARRANGEMENTS = ("synthesis + critic", "critic", "synthesis")


def synthesis(generator: Generator, w: Tensor, noise: Tensor) -> Tensor:
    """Images of styles w [N, layers, style] and noise [N, noise_numbers]."""
    g = generator.synthesis
    x = g.start.permute(2, 0, 1)[None].repeat(len(w), 1, 1, 1)
    image: Tensor | None = None
    for number, (layer, drawn) in enumerate(zip(g.layers, torch.split(noise, g.noise_sizes, 1), strict=True)):
        x = styled(layer, x, w[:, number], drawn)  # type: ignore[arg-type]
        if number % 2 == 0:
            to_image: Any = g.to_image[number // 2]
            style = to_image.style(w[:, number + 1]) * to_image.scale
            weight = to_image.weight[None, :, :, None, None] * style[:, None, :, None, None]
            more = _grouped(x, weight, 0) + to_image.bias[None, :, None, None]
            doubled = None if image is None else F.interpolate(image, scale_factor=2.0, mode="bilinear")
            image = more if doubled is None else doubled + more
    assert image is not None
    return image


def styled(layer: StyledConv, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """One layer: x [N, I, H, W], w [N, style], noise [N, H' W'] -> [N, O, H', W']."""
    conv, up = layer.conv, layer.conv.blur is not None
    shared = conv.weight.transpose(0, 1) if up else conv.weight
    style = conv.style(w)
    weight = shared[None] * conv.scale * style[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    if conv.blur is not None:
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


def plain(
    system: StyleBasedGAN,
    generator: Generator,
    critic: nn.Module,
    optimizers: dict[str, Optimizer],
    *,
    tidy: bool = True,
    compiled: str = "",
    average: Generator | None = None,
    decay: float = 0.999,
) -> Callable[[Tensor], None]:
    """loop(images [N, C, S, S]), which trains the two networks by one step.

    optimizers: of "generator" and "critic", Adam;  compiled: one of ARRANGEMENTS, or "" for none;  average: gets the
    moving average of the generator's weights
    """
    average = average or copy.deepcopy(generator).requires_grad_(False)
    generator_adam, critic_adam = (
        adam_of(optimizers[name], module, fused=tidy) for name, module in (("generator", generator), ("critic", critic))
    )
    numbers, layers = itertools.count(), generator.synthesis.styles
    mean_length = torch.zeros((), device=next(generator.parameters()).device)
    gamma, weight = first(system.r1), first(system.path)
    make: Any = torch.compile(synthesis) if "synthesis" in compiled else synthesis
    judge: Any = torch.compile(critic) if "critic" in compiled else critic

    def styles(count: int) -> Tensor:
        w = generator.mapping(torch.randn(count, system.latent, device=mean_length.device))[:, None]
        w = w.repeat(1, layers, 1)
        if torch.rand(()) < system.style_mixing:
            cut = int(torch.randint(1, layers, ()))
            w[:, cut:] = generator.mapping(torch.randn(count, system.latent, device=w.device))[:, None]
        return w  # type: ignore[no-any-return]

    def draw(how: Any, w: Tensor) -> Tensor:
        images: Tensor = how(generator, w, torch.randn(len(w), generator.synthesis.noise_numbers, device=w.device))
        return images

    def critic_turn(images: Tensor, fakes: Tensor, number: int) -> None:
        critic.requires_grad_(True)
        _update(critic_adam, F.softplus(judge(fakes)).mean() + F.softplus(-judge(images)).mean())
        if gamma and number % system.r1_every == 0:
            x = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
            _update(critic_adam, slope.square().sum((1, 2, 3)).mean() * gamma / 2 * system.r1_every)

    def path_turn(count: int) -> None:
        w = styles(count)
        fake = draw(synthesis, w)
        weighted = (fake * torch.randn_like(fake) / math.sqrt(fake.shape[2] * fake.shape[3])).sum()
        (slope,) = torch.autograd.grad(weighted, w, create_graph=True)
        lengths = slope.square().sum(2).mean(1).sqrt()
        mean_length.lerp_(lengths.detach().mean(), 0.01)
        _update(generator_adam, (lengths - mean_length).square().mean() * weight * system.path_every)

    def loop(images: Tensor) -> None:
        number, count = next(numbers), len(images)
        with torch.set_grad_enabled(tidy):
            fakes = draw(make, styles(count))
        critic_turn(images, fakes.detach(), number)
        critic.requires_grad_(False)
        if not tidy:
            fakes = draw(make, styles(count))
        _update(generator_adam, F.softplus(-judge(fakes)).mean())
        if weight and number % system.path_every == 0:
            path_turn(max(1, count // system.path_share))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - decay)

    return loop


def _update(adam: torch.optim.Optimizer, loss: Tensor) -> None:
    adam.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    adam.step()
