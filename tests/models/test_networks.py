"""What every network family keeps: shapes, dtypes, layouts, second derivatives, and errors in one line."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastgan.contract import ImageShape, Networks
from fastgan.errors import FastganError
from fastgan.models import DCGAN, NETWORKS, R3GAN, ResNet, StyleGAN2

TINY_DCGAN = DCGAN(generator_width=4, critic_width=4, max_width=8)
TINY_RESNET = ResNet(generator_width=4, generator_max_width=8, critic_width=4, critic_max_width=8)
TINY_R3GAN = R3GAN(widths=(8, 8, 8, 4, 4, 4, 4), blocks=(1, 2, 1, 1, 1, 1, 1), group_size=4)
TINY_STYLEGAN2 = StyleGAN2(2, 2, max_width=4, style=6, mapping_layers=2)

SIZES = [
    *((TINY_DCGAN, size) for size in (16, 32, 64, 128, 256, 512)),
    *((TINY_RESNET, size) for size in (32, 64, 128, 256)),
    *((TINY_R3GAN, size) for size in (8, 16, 32, 64, 128, 256)),
    *((TINY_STYLEGAN2, size) for size in (8, 64, 256)),
]
FAMILIES = [  # each option of normalisation, small enough for numerical derivatives
    pytest.param(DCGAN(generator_width=2, critic_width=2), 16, id="dcgan"),
    pytest.param(DCGAN(2, 2, generator_norm="none", critic_norm="none"), 16, id="dcgan-none"),
    pytest.param(DCGAN(2, 2, critic_norm="spectral"), 16, id="dcgan-spectral"),
    pytest.param(ResNet(2, 2, 2, 2), 32, id="resnet"),
    pytest.param(R3GAN(widths=(4, 2), blocks=(1, 1), group_size=2), 8, id="r3gan"),
    pytest.param(StyleGAN2(2, 2, max_width=3, style=3, mapping_layers=1), 8, id="stylegan2"),
]


def pair(networks: Networks, size: int, channels: int = 3, latent: int = 6) -> tuple[nn.Module, nn.Module]:
    """Generator and critic, with every zero parameter made random so that nothing is hidden behind it."""
    torch.manual_seed(0)
    image = ImageShape(channels, size)
    generator, critic = networks.generator(image, latent), networks.critic(image)
    for p in [*generator.parameters(), *critic.parameters()]:
        if not p.detach().any():
            nn.init.normal_(p, 0.0, 0.1)
    return generator, critic


def test_table_names_the_families():
    assert all(name == family.__name__.lower() for name, family in NETWORKS.items())
    assert {DCGAN, R3GAN, ResNet} <= set(NETWORKS.values())


@pytest.mark.parametrize(("networks", "size"), SIZES, ids=lambda v: v if isinstance(v, int) else type(v).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_of_every_size(networks: Networks, size: int, channels: int):
    generator, critic = pair(networks, size, channels)
    with torch.no_grad():
        images = generator(torch.randn(2, 6))
        logits = critic(images)
    assert images.shape == (2, channels, size, size)
    assert images.isfinite().all()
    assert logits.shape == (2,)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("networks", "size"), FAMILIES)
def test_every_parameter_learns_and_one_sample_is_enough_to_evaluate(networks: Networks, size: int):
    generator, critic = pair(networks, size)
    # In float64: the gradient of a bias in front of a batch normalisation is rounding alone, in float32 at times 0.
    critic.double()(generator.double()(torch.randn(5, 6, dtype=torch.float64))).square().sum().backward()
    for module in (generator.float(), critic.float()):
        assert not [name for name, p in module.named_parameters() if not p.grad.abs().sum() > 0]
    assert critic.eval()(generator.eval()(torch.randn(1, 6))).shape == (1,)


@pytest.mark.parametrize(("networks", "size"), FAMILIES)
def test_float64_and_channels_last_agree_with_the_default(networks: Networks, size: int):
    generator, critic = (m.eval() for m in pair(networks, size))
    z, x = torch.randn(3, 6), torch.randn(3, 3, size, size)
    with torch.no_grad():
        images, logits = generator(z), critic(x)
        generator.to(memory_format=torch.channels_last)
        critic.to(memory_format=torch.channels_last)
        torch.testing.assert_close(generator(z), images)
        torch.testing.assert_close(critic(x.contiguous(memory_format=torch.channels_last)), logits)
        assert generator(z).is_contiguous(memory_format=torch.channels_last)
        wide_images, wide_logits = generator.double()(z.double()), critic.double()(x.double())
    assert wide_images.dtype == wide_logits.dtype == torch.float64
    torch.testing.assert_close(wide_images.float(), images)
    torch.testing.assert_close(wide_logits.float(), logits)


@pytest.mark.parametrize(("networks", "size"), FAMILIES)
def test_second_derivatives(networks: Networks, size: int):
    """Of both networks by input and parameters; in-place activations must not stand in the way."""
    generator, critic = pair(networks, size)
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    if not isinstance(networks, DCGAN) or networks.critic_norm == "spectral":
        critic.eval()  # spectral norm moves its vectors in training, which no numerical derivative survives
    for module, inputs in ((generator.double(), z), (critic.double(), x)):
        names, parameters = zip(*module.named_parameters(), strict=True)
        function = partial(_apply, module, names)
        assert torch.autograd.gradgradcheck(function, (inputs, *parameters), fast_mode=True, atol=1e-4)


def _apply(module: nn.Module, names: tuple[str, ...], inputs: Tensor, *parameters: Tensor) -> Tensor:
    return functional_call(module, dict(zip(names, parameters, strict=True)), inputs)


@pytest.mark.parametrize(("networks", "size"), FAMILIES)
def test_same_seed_same_networks(networks: Networks, size: int):
    first, second = pair(networks, size), pair(networks, size)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


BAD = {
    "dcgan, odd": (DCGAN(), ImageShape(3, 48), "DCGAN makes images of a power of two from 16 to 512 pixels, got"),
    "dcgan, small": (DCGAN(), ImageShape(3, 8), "from 16 to 512 pixels, got size 8"),
    "dcgan, large": (DCGAN(), ImageShape(3, 1024), "from 16 to 512 pixels, got size 1024"),
    "resnet, small": (ResNet(), ImageShape(3, 16), "ResNet makes images of a power of two from 32 to 256"),
    "resnet, zero": (ResNet(), ImageShape(3, 0), "got size 0"),
    "r3gan, small": (R3GAN(), ImageShape(3, 4), "R3GAN makes images of a power of two from 8 to"),
    "r3gan, large": (R3GAN(), ImageShape(3, 512), "R3GAN: 512 pixels need 8 entries in widths and blocks"),
    "stylegan2, small": (StyleGAN2(), ImageShape(3, 4), "StyleGAN2 makes images of a power of two from 8 to 1024"),
    "no channels": (DCGAN(), ImageShape(0, 64), "images of 1 channel or more, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_sizes_that_cannot_be_made(case: str):
    networks, image, message = BAD[case]
    for make in (lambda: networks.generator(image, 8), lambda: networks.critic(image)):
        with pytest.raises(FastganError) as error:
            make()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


BAD_OPTIONS = {
    "DCGAN: generator_width must be 1 or more, got 0": lambda: DCGAN(generator_width=0),
    "DCGAN: max_width must be 1 or more, got -1": lambda: DCGAN(max_width=-1),
    "DCGAN: critic_norm 'bach' is unknown; did you mean 'batch'?": lambda: DCGAN(critic_norm="bach"),
    "DCGAN: generator_norm 'spectral' is unknown": lambda: DCGAN(generator_norm="spectral"),
    "ResNet: critic_max_width must be 1 or more, got 0": lambda: ResNet(critic_max_width=0),
    "R3GAN: widths and blocks must have one entry each": lambda: R3GAN(widths=(8, 8)),
    "R3GAN: width 12 times expansion 2 must be a multiple of group_size 16": lambda: R3GAN((12,), (1,)),
    "R3GAN: group_size must be 1 or more, got 0": lambda: R3GAN(group_size=0),
    "R3GAN: blocks must be 1 or more, got 0": lambda: R3GAN((16,), (0,)),
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_options_that_mean_nothing(message: str):
    with pytest.raises(FastganError) as error:
        BAD_OPTIONS[message]()
    assert str(error.value).startswith(message)
