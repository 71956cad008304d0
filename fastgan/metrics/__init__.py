"""Measures of how near generated samples are to real ones.

fid, fid_infinity, kid, prd, precision_recall, density_coverage    features of real and fake samples
inception_score                                                    logits of fake samples
path_length, diversity                                             a generator, or images, and a perceptual distance
pixel_accuracy, psnr, ssim, ms_ssim                                images with one right answer each
critic_calibration                                                 the critic's logits

Each returns a Result: value, protocol (every convention that moves the number), further values, warnings.
"""

from fastgan.kernels.matrix_root import sqrtm_trace
from fastgan.kernels.square_root import sqrtm
from fastgan.metrics.coverage import density_coverage, prdc, precision_recall
from fastgan.metrics.critic import critic_calibration
from fastgan.metrics.feature_distance import fid, fid_infinity
from fastgan.metrics.frechet import frechet_distance
from fastgan.metrics.inception import inception_score
from fastgan.metrics.kernel_distance import kid
from fastgan.metrics.neighbours import Rule
from fastgan.metrics.paired import ms_ssim, psnr, ssim
from fastgan.metrics.pairs import diversity
from fastgan.metrics.path import path_length
from fastgan.metrics.pixels import pixel_accuracy
from fastgan.metrics.plot import prd_svg
from fastgan.metrics.prd_curve import prd
from fastgan.metrics.result import Result
from fastgan.metrics.statistics import FeatureStatistics

__all__ = [
    "FeatureStatistics",
    "Result",
    "Rule",
    "critic_calibration",
    "density_coverage",
    "diversity",
    "fid",
    "fid_infinity",
    "frechet_distance",
    "inception_score",
    "kid",
    "ms_ssim",
    "path_length",
    "pixel_accuracy",
    "prd",
    "prd_svg",
    "prdc",
    "precision_recall",
    "psnr",
    "sqrtm",
    "sqrtm_trace",
    "ssim",
]
