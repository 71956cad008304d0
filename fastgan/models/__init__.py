"""Network families: frozen dataclasses of options with `generator(image, latent)` and `critic(image)`."""

from fastgan.models.dcgan import DCGAN
from fastgan.models.dense import Dense
from fastgan.models.patch_critic import PatchCritic
from fastgan.models.r3gan import R3GAN
from fastgan.models.resnet import ResNet
from fastgan.models.resnet_translator import ResNetTranslator
from fastgan.models.srresnet import SRCritic, SRResNet
from fastgan.models.stylegan2 import StyleGAN2
from fastgan.models.unet import UNet

NETWORKS = {"dcgan": DCGAN, "dense": Dense, "r3gan": R3GAN, "resnet": ResNet, "stylegan2": StyleGAN2}
"""Name -> family. A new family is its file, its test and its line here."""

TRANSLATORS = {"resnet_translator": ResNetTranslator, "srresnet": SRResNet, "unet": UNet}
"""Name -> family of networks from images to images, with `translator` or `upscaler`."""

__all__ = [
    "DCGAN",
    "NETWORKS",
    "R3GAN",
    "TRANSLATORS",
    "Dense",
    "PatchCritic",
    "ResNet",
    "ResNetTranslator",
    "SRCritic",
    "SRResNet",
    "StyleGAN2",
    "UNet",
]
