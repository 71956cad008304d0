"""Feature networks for metrics and perceptual losses: images in, vectors out."""

from fastgan.features.extractor import Extractor, FeatureProtocol, open_extractor

__all__ = ["Extractor", "FeatureProtocol", "open_extractor"]
