from fastgan.nn.attention import SelfAttention2d
from fastgan.nn.conditional import ConditionalBatchNormAct1d, ConditionalBatchNormAct2d, ConditionalSequential
from fastgan.nn.convolution import Conv2d
from fastgan.nn.fuse import Record, fuse, fused
from fastgan.nn.modules import BatchNormAct2d, BiasAct, ConvTransposeBatchNormAct1d, ConvTransposeBatchNormAct2d
from fastgan.nn.shared import share_statistics

__all__ = [
    "BatchNormAct2d",
    "BiasAct",
    "ConditionalBatchNormAct1d",
    "ConditionalBatchNormAct2d",
    "ConditionalSequential",
    "Conv2d",
    "ConvTransposeBatchNormAct1d",
    "ConvTransposeBatchNormAct2d",
    "Record",
    "SelfAttention2d",
    "fuse",
    "fused",
    "share_statistics",
]
