"""Feature networks for metrics and perceptual losses: images in, vectors out."""

from fastgan.features.extractor import Extractor, FeatureProtocol, open_extractor
from fastgan.features.vgg16 import VGG16Maps, open_vgg16_maps

__all__ = ["Extractor", "FeatureProtocol", "VGG16Maps", "open_extractor", "open_vgg16_maps"]
