"""Batch normalisation whose scale and shift depend on a label (de Vries et al. 2017, arXiv:1707.00683).

    y[n, c] = act((x[n, c] - mean[c]) / sqrt(var[c] + eps) * gain[label[n], c] + bias[label[n], c])

The kernels of batch normalisation know one scale and shift per channel. So the normalisation is one pass of theirs, and
scale, shift and activation are another: theirs again, on x seen as [1, N C, H W], where x lies in memory like that
(channels first); for channels-last tensors PyTorch's addcmul with the activation in place behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.kernels.activations import ACTS, activate, code_of
from fastgan.kernels.batch_norm_act import scale_bias_act
from fastgan.nn.chain import TYPES, run_chain


class ConditionalBatchNormAct2d(nn.Module):
    """act(batch_norm(x) * gain[labels] + bias[labels]): x [N, C, ...], labels [N] int64 -> like x.

    State: norm.running_mean, norm.running_var, gain.weight, bias.weight [classes, C], which start at 1 and 0.
    act, negative_slope: as in BatchNormAct2d. Differentiable to any order. Raises FastganError.
    """

    make_norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d] = nn.BatchNorm2d

    def __init__(
        self,
        num_features: int,
        classes: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        act: str = "relu",
        negative_slope: float = 0.2,
    ) -> None:
        code_of(act, type(self).__name__)
        if classes < 1:
            raise FastganError(f"{type(self).__name__}: classes must be 1 or more, got {classes}")
        super().__init__()
        self.act, self.negative_slope = act, negative_slope
        self.norm = self.make_norm(num_features, eps, momentum, affine=False)
        self.gain = nn.Embedding(classes, num_features)
        self.bias = nn.Embedding(classes, num_features)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.after(None, x, labels)

    def after(self, conv: nn.Module | None, x: Tensor, labels: Tensor) -> Tensor:
        """The same of conv(x), a transposed convolution with which the normalisation is one block."""
        name = f"{type(self).__name__}({self.norm.num_features})"
        normal = run_chain(x, ((name, conv, self.norm, "none", 0.0),))
        return scale_shift_act(normal, self.gain(labels), self.bias(labels), self.act, self.negative_slope)

    def extra_repr(self) -> str:
        return f"act={self.act}"


class ConditionalBatchNormAct1d(ConditionalBatchNormAct2d):
    """ConditionalBatchNormAct2d for x [N, C] or [N, C, L]."""

    make_norm = nn.BatchNorm1d


def scale_shift_act(x: Tensor, scale: Tensor, shift: Tensor, act: str, slope: float = 0.2) -> Tensor:
    """act(x * scale + shift) per sample and channel: x [N, C, ...], scale and shift [N, C] -> like x."""
    if x.dim() > 2 and x.is_contiguous() and x.dtype in TYPES and not torch.compiler.is_exporting():
        whole = scale_bias_act(x.reshape(1, -1, x[0, 0].numel()), scale.reshape(-1), shift.reshape(-1), act, slope)
        return whole.view_as(x)
    shape = (*scale.shape, *[1] * (x.dim() - 2))
    y = torch.addcmul(shift.view(shape).to(x.dtype), x, scale.view(shape).to(x.dtype))
    return activate(y, ACTS[act], slope)


class ConditionalSequential(nn.Sequential):
    """Layers in a row, (x, labels) -> y; those that are conditional get the labels.

    A transposed convolution and the conditional batch normalisation behind it are one block.
    """

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        held: nn.Module | None = None
        for layer, following in zip(self, [*list(self)[1:], None], strict=True):
            if isinstance(layer, nn.ConvTranspose2d) and isinstance(following, ConditionalBatchNormAct2d):
                held = layer
            elif isinstance(layer, ConditionalBatchNormAct2d):
                x, held = layer.after(held, x, labels), None
            else:
                x = layer(x, labels) if isinstance(layer, ConditionalSequential) else layer(x)
        return x
