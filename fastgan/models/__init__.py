"""Network families: frozen dataclasses of options with `generator(image, latent)` and `critic(image)`."""

from fastgan.models.dcgan import DCGAN
from fastgan.models.dense import Dense
from fastgan.models.r3gan import R3GAN
from fastgan.models.resnet import ResNet

NETWORKS = {"dcgan": DCGAN, "dense": Dense, "r3gan": R3GAN, "resnet": ResNet}
"""Name -> family. A new family is its file, its test and its line here."""

__all__ = ["DCGAN", "NETWORKS", "R3GAN", "Dense", "ResNet"]
