"""Optimisers of one player: options, state, and an update that reads all its numbers on the device.

An update is skipped as a whole, on the device, where the skip flag is set: weights, moments, averages and
counters then keep every bit. So a non-finite step costs one step and no host synchronisation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError, suggest
from fastgan.kernels.adam_ema import adam_ema_
from fastgan.schedule import Scheduled, highest, lowest, value_at

# Per kind of optimiser, the tensors that it keeps per parameter.
SLOTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum",), "rmsprop": ("square_avg",)}


@dataclass(frozen=True)
class Optimizer:
    """How one player is updated.

    kind:         "adam" (Kingma and Ba 2015), "sgd" (with momentum), "rmsprop" (Hinton; `beta2` is its decay)
    lr:           learning rate, number or schedule
    beta1, beta2: decay of the first moment (for sgd: momentum) and of the second moment, numbers or schedules
    eps:          added to the root of the second moment
    clip_norm:    gradients longer than this are scaled down to it (0: never)
    clip_weights: weights are clamped to [-c, c] after each update (0: never; Wasserstein GAN, Arjovsky 2017)
    """

    kind: str = "adam"
    lr: Scheduled = 2e-4
    beta1: Scheduled = 0.5
    beta2: Scheduled = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0
    clip_weights: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SLOTS:
            raise FastganError(f"optimiser kind {self.kind!r} is unknown{suggest(self.kind, SLOTS)}")
        if not lowest(self.lr) >= 0:
            raise FastganError(f"a learning rate must be 0 or more, got lr={self.lr}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not (lowest(value) >= 0 and highest(value) < 1):
                raise FastganError(f"{name} must be in [0, 1), got {value}")
        for name in ("eps", "clip_norm", "clip_weights"):
            if not getattr(self, name) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Averaging:
    """Exponential moving average of a player's weights and buffers.

    halflife_kimg: after this many thousand images a weight's share in the average has halved (0: no average)
    rampup:        the half-life is at most this fraction of the images seen so far (0: no warm-up)
    """

    halflife_kimg: float = 10.0
    rampup: float = 0.05

    def __post_init__(self) -> None:
        for name in ("halflife_kimg", "rampup"):
            if not getattr(self, name) >= 0:
                raise FastganError(f"averaging: {name} must be 0 or more, got {getattr(self, name)}")

    def decay(self, images: Tensor, batch: int) -> Tensor:
        """Decay of one update of `batch` images, after which `images` (0-dim float64) were seen."""
        halflife = torch.full_like(images, self.halflife_kimg * 1000)
        if self.rampup:
            halflife = torch.minimum(halflife, images * self.rampup)
        return torch.exp2(-batch / halflife)


class PlayerState:
    """One player with all that training changes in it: weights, buffers, average, moments, gradients.

    The gradients are views of one flat buffer (`grad`, [P]), so that a norm, a check for non-finite values or
    an all-reduce is one operation, and so that their addresses stay the same for a captured graph.
    """

    def __init__(self, module: nn.Module, options: Optimizer, *, averaged: bool) -> None:
        self.module, self.options = module, options
        self.average = copy.deepcopy(module).requires_grad_(False) if averaged else None
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.average_params = [p for p, q in self._pairs() if q.requires_grad]
        self.slots = {slot: [torch.zeros_like(p) for p in self.params] for slot in SLOTS[options.kind]}
        self.grad, self._grads = flat_views(self.params)
        self.updates = torch.zeros((), dtype=torch.float64, device=self.grad.device)
        self._gather_grads()

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(averaged, trained) parameters; none without an average."""
        if self.average is not None:
            yield from zip(self.average.parameters(), self.module.parameters(), strict=True)

    def zero_grad(self) -> None:
        self.grad.zero_()

    def _gather_grads(self) -> None:
        """Point every `.grad` at its view of the flat buffer; one that somebody replaced is copied there."""
        for p, view in zip(self.params, self._grads, strict=True):
            if p.grad is not view:
                if p.grad is not None:
                    view.copy_(p.grad)
                p.grad = view

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of all gradients, 0-dim; NaN or infinite exactly if some gradient is, or overflows."""
        self._gather_grads()
        norm: Tensor = torch.linalg.vector_norm(self.grad)
        return norm

    @torch.no_grad()
    def update(self, progress: Tensor, ema_decay: Tensor, norm: Tensor, skip: Tensor) -> None:
        """One step of the optimiser and of the average, nothing of it where `skip` (0-dim bool) is set.

        progress: 0-dim float64, fraction of the run;  ema_decay: 0-dim float64;  norm: of the gradients
        """
        o = self.options
        scale = torch.ones_like(progress)
        if o.clip_norm:
            scale = (o.clip_norm / norm.double()).clamp(max=1.0)
        lr, beta1, beta2 = (value_at(value, progress) for value in (o.lr, o.beta1, o.beta2))
        if o.kind == "adam":
            adam_ema_(
                self.params,
                self._grads,
                self.slots["exp_avg"],
                self.slots["exp_avg_sq"],
                self.average_params,
                step=self.updates,
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=o.eps,
                ema_decay=ema_decay,
                grad_scale=scale,
                skip=skip,
            )
        else:
            self._update_simple(lr, beta1, beta2, scale, skip)
            self._average(self.average_params, self.params, ema_decay, skip)
        if o.clip_weights:
            for p in self.params:
                p.clamp_(-o.clip_weights, o.clip_weights)
        self._average_buffers(ema_decay, skip)

    def _update_simple(self, lr: Tensor, beta1: Tensor, beta2: Tensor, scale: Tensor, skip: Tensor) -> None:
        """SGD with momentum (torch.optim.SGD's form) or RMSprop (torch.optim.RMSprop's), skip on the device."""
        kind, eps = self.options.kind, self.options.eps
        for index, (p, g) in enumerate(zip(self.params, self._grads, strict=True)):
            g = g * scale.to(g.dtype)
            if kind == "sgd":
                slot = self.slots["momentum"][index]
                new = slot * beta1.to(g.dtype) + g
                delta = new
            else:
                slot = self.slots["square_avg"][index]
                new = slot * beta2.to(g.dtype) + g * g * (1 - beta2).to(g.dtype)
                delta = g / (new.sqrt() + eps)
            slot.copy_(torch.where(skip, slot, new))
            p.copy_(torch.where(skip, p, p - lr.to(g.dtype) * delta))
        self.updates.add_(torch.where(skip, 0.0, 1.0))

    def _average(
        self,
        averages: list[nn.Parameter] | list[Tensor],
        values: list[nn.Parameter] | list[Tensor],
        decay: Tensor,
        skip: Tensor,
    ) -> None:
        for average, value in zip(averages, values, strict=False):
            if average.is_floating_point():
                weight = torch.where(skip, 0.0, 1.0 - decay).to(average.dtype)
                average.add_((value - average) * weight)
            else:
                average.copy_(value)

    def _average_buffers(self, decay: Tensor, skip: Tensor) -> None:
        """Running statistics are averaged like the weights that they belong to."""
        if self.average is not None:
            self._average(list(self.average.buffers()), list(self.module.buffers()), decay, skip)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the player, by file: weights "", "ema", "optimizer"."""
        files = {"": dict(self.module.state_dict())}
        if self.average is not None:
            files["ema"] = dict(self.average.state_dict())
        files["optimizer"] = {
            f"{slot}.{name}": tensor
            for slot, tensors in self.slots.items()
            for name, tensor in zip(self.names, tensors, strict=True)
        } | {"updates": self.updates}
        return files


def flat_views(params: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """One zeroed flat buffer [P] and, per parameter, a view of it with the parameter's shape and strides."""
    if not params:
        raise FastganError("a player without trainable parameters cannot be trained")
    flat = torch.zeros(sum(p.numel() for p in params), dtype=params[0].dtype, device=params[0].device)
    views, start = [], 0
    for p in params:
        if torch.empty_like(p).stride() != p.stride():  # has gaps or overlaps
            p.data = p.data.contiguous()
        views.append(torch.as_strided(flat, p.shape, p.stride(), start))
        start += p.numel()
    return flat, views
