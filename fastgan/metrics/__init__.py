"""Measures of how near generated samples are to real ones."""

from fastgan.kernels.matrix_root import sqrtm_trace
from fastgan.kernels.square_root import sqrtm
from fastgan.metrics.frechet import frechet_distance
from fastgan.metrics.statistics import FeatureStatistics

__all__ = ["FeatureStatistics", "frechet_distance", "sqrtm", "sqrtm_trace"]
