"""StyleGAN2's networks against the paper's formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models import StyleGAN2
from fastgan.models.stylegan2 import SLOPE, Conv, HalvingBlock, Mapping, StyledConv, with_minibatch_std
from fastgan.nn.modulated import Blur, Linear, ToImage

SMALL = StyleGAN2(4, 4, max_width=8, style=6, mapping_layers=2)
IMAGE = ImageShape(3, 16)


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def lrelu(x: Tensor) -> Tensor:
    return math.sqrt(2) * F.leaky_relu(x, SLOPE)


def shuffled(module: torch.nn.Module) -> torch.nn.Module:
    """No parameter is 0 or 1, so that nothing is hidden behind it."""
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("up", [False, True])
def test_a_layer_is_the_papers_convolution_with_weights_per_sample(up: bool) -> None:
    """Equations 1 and 3; upsampling as zeros between pixels, convolution and the filter [1, 3, 3, 1]."""
    layer = shuffled(StyledConv(5, 7, 6, 8, up=up))
    x, w = torch.randn(3, 5, 4 if up else 8, 4 if up else 8), torch.randn(3, 6)
    noise = torch.randn(3, 64)
    y = layer(x, w, noise)
    weight = (layer.conv.weight.transpose(0, 1) if up else layer.conv.weight) / math.sqrt(5 * 9)
    for n in range(3):
        s = F.linear(w[n], layer.conv.style.weight / math.sqrt(6), layer.conv.style.bias)
        own = s[None, :, None, None] * weight
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            spread = torch.zeros(1, 5, 11, 11)  # zeros between pixels, and two at each edge
            spread[:, :, 2:9:2, 2:9:2] = x[n]
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8 * 2
            blurred = torch.outer(taps, taps).expand(7, 1, 4, 4)
            conved = F.conv2d(spread, own.flip(2, 3))
            expected = F.conv2d(conved, blurred, padding=1, groups=7)
        else:
            expected = F.conv2d(x[n : n + 1], own, padding=1)
        expected = lrelu(expected + layer.strength * noise[n].view(8, 8) + layer.bias[:, None, None])
        torch.testing.assert_close(y[n], expected[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_image_layer_is_a_modulated_convolution_without_demodulation(layout: torch.memory_format) -> None:
    layer = shuffled(ToImage(5, 3, 6))
    x, w = torch.randn(2, 5, 4, 6).contiguous(memory_format=layout), torch.randn(2, 6)
    for n in range(2):
        s = F.linear(w[n], layer.style.weight / math.sqrt(6), layer.style.bias)
        expected = F.conv2d(x[n : n + 1], (layer.weight / math.sqrt(5) * s)[:, :, None, None], layer.bias)
        torch.testing.assert_close(layer(x, w)[n], expected[0])


def test_equalised_learning_rate() -> None:
    """Weights are stored with variance 1 / lr^2 and used times lr / sqrt(fan_in): signals keep their variance, and
    a step of Adam moves what is used by lr / sqrt(fan_in) of what it moves the parameter."""
    layer = Linear(400, 300, lr=0.01, bias=0.5)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.01)
    y = layer(torch.randn(500, 400))
    assert (y - 0.5).var().item() == pytest.approx(1, rel=0.05)
    with torch.no_grad():
        layer.bias.add_(1.0)
    torch.testing.assert_close(layer(torch.zeros(1, 400))[0] - 0.51, torch.zeros(300))
    conv = Conv(50, 60, 3, gain=2.0)
    assert conv(torch.randn(2, 50, 20, 20)).var().item() == pytest.approx(4, rel=0.1)


def test_mapping_by_hand() -> None:
    mapping = shuffled(Mapping(4, 6, 2, 0.01))
    z = torch.randn(3, 4)
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in mapping.layers:
        w = lrelu(w @ (layer.weight * 0.01 / math.sqrt(layer.weight.shape[1])).mT + 0.01 * layer.bias)
    torch.testing.assert_close(mapping(z), w, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mapping(z), mapping(7 * z), rtol=1e-6, atol=1e-6)


def test_a_critics_block_by_hand() -> None:
    block = shuffled(HalvingBlock(4, 6))
    x = torch.randn(2, 4, 8, 8)
    conv, halve, skip = block.conv, block.halve, block.skip
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    blur = torch.outer(taps, taps).expand(4, 1, 4, 4)
    y = lrelu(F.conv2d(x, conv.weight / 6, conv.bias, padding=1))
    y = lrelu(F.conv2d(F.conv2d(y, blur, padding=2, groups=4), halve.weight / 6, halve.bias, stride=2))
    down = F.conv2d(F.conv2d(x, blur, padding=1, stride=2, groups=4), skip.weight / 2)
    torch.testing.assert_close(block(x), (y + down) / math.sqrt(2))


def test_minibatch_standard_deviation() -> None:
    x = torch.randn(8, 3, 4, 4)
    y = with_minibatch_std(x, 4)
    assert torch.equal(y[:, :3], x)
    for group in (0, 1):
        of = slice(4 * group, 4 * group + 4)
        expected = (x[of].var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[of, 3], expected.expand(4, 4, 4))
    torch.testing.assert_close(torch.cat([with_minibatch_std(half, 4) for half in x.chunk(2)]), y)  # as two ranks
    assert with_minibatch_std(x[:6], 4).shape == (6, 4, 4, 4)  # in groups of three
    assert with_minibatch_std(x[:1], 4)[0, 3].max() == pytest.approx(1e-4)


def test_blur_keeps_constants_and_doubling_their_value() -> None:
    ones = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(Blur(2, padding=1, stride=2)(ones)[:, :, 1:-1, 1:-1], ones[:, :, :2, :2])
    spread = F.conv_transpose2d(ones, torch.ones(2, 1, 1, 1), stride=2, groups=2)
    assert Blur(2, padding=2, gain=4.0)(spread)[:, :, 4:-4, 4:-4].sub(1).abs().max() < 1e-12


def test_noise_of_the_buffers_and_given_noise() -> None:
    generator = shuffled(SMALL.generator(IMAGE, 5))
    z = torch.randn(2, 5)
    assert generator.synthesis.noise_numbers == 16 + 2 * 64 + 2 * 256
    kept = torch.cat([layer.noise.flatten() for layer in generator.synthesis.layers]).expand(2, -1)
    torch.testing.assert_close(generator(z, kept), generator(z))
    assert (generator(z, torch.randn_like(kept)) - generator(z)).abs().max() > 1e-3


def test_styles_go_to_the_layers_of_their_number() -> None:
    """A style of one layer changes the image, and the others stay: all are used, in the paper's order."""
    generator = shuffled(SMALL.generator(IMAGE, 5))
    w = torch.randn(1, generator.synthesis.styles, 6)
    image = generator.synthesis(w)
    assert image.shape == (1, 3, 16, 16)
    assert generator.synthesis.styles == 6
    for number in range(6):
        other = w.clone()
        other[:, number] += 1
        assert (generator.synthesis(other) - image).abs().max() > 1e-4, number
    torch.testing.assert_close(generator.synthesis(w[:, 0]), generator.synthesis(w[:, :1].expand(-1, 6, -1)))


def test_truncation() -> None:
    generator = SMALL.generator(IMAGE, 5)
    generator.style_mean.copy_(torch.randn(6))
    w = torch.randn(4, 6)
    torch.testing.assert_close(generator.truncated(w, 0.0), generator.style_mean.expand(4, 6))
    torch.testing.assert_close(generator.truncated(w, 1.0), w)
    torch.testing.assert_close(generator.truncated(w, 0.7), generator.style_mean + 0.7 * (w - generator.style_mean))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": 0}, "StyleGAN2: style must be 1 or more, got 0"),
        ({"mapping_lr": 0.0}, "StyleGAN2: mapping_lr must be more than 0, got 0.0"),
        ({"minibatch_std": -1}, "StyleGAN2: minibatch_std must be 0 or more, got -1"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, float], message: str) -> None:
    with pytest.raises(FastganError) as error:
        StyleGAN2(**options)
    assert str(error.value) == message
