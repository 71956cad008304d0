"""Optimisers of one player: options, state, and an update that reads all its numbers on the device.

An update is skipped as a whole, on the device, where the skip flag is set: weights, moments, averages and
counters then keep every bit. So a non-finite step costs one step and no host synchronisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError, suggest
from fastgan.flat import FlatBuffers
from fastgan.kernels.adam_ema import adam_ema_
from fastgan.schedule import Progress, Schedule, Scheduled, highest, lowest

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

    def lazy(self, every: int) -> Optimizer:
        """For a player that has a second update in every `every`-th step, a lazy penalty's: lr c and beta^c with
        c = every / (every + 1) (Karras et al. 2020, arXiv:1912.04958, appendix B)."""
        c = every / (every + 1)

        def to(value: Scheduled, change: Callable[[float], float]) -> Scheduled:
            if isinstance(value, Schedule):
                return replace(value, start=change(value.start), end=change(value.end))
            return change(value)

        return replace(
            self,
            lr=to(self.lr, lambda lr: lr * c),
            beta1=to(self.beta1, lambda beta: beta**c),
            beta2=to(self.beta2, lambda beta: beta**c),
        )


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
    """One player with all that training changes in it: weights, buffers, average, moments.

    Gradients are the parameters' `.grad`, None between turns, so that each is taken over from the backward pass as it
    is. A parameter without a gradient is left alone in that turn, as torch's optimisers do.
    """

    def __init__(self, module: nn.Module, options: Optimizer, *, averaged: bool) -> None:
        self.module, self.options = module, options
        self.average = copy.deepcopy(module).requires_grad_(False) if averaged else None
        self.buffers = FlatBuffers(module)
        self.average_buffers = FlatBuffers(self.average) if self.average is not None else None
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise FastganError("a player without trainable parameters cannot be trained")
        self.names, self.params = [name for name, _ in trained], [p for _, p in trained]
        averages = dict(self.average.named_parameters()) if self.average is not None else {}
        self.average_params: list[Tensor] = [averages[name] for name in self.names if averages]
        self.slots = {slot: [torch.zeros_like(p) for p in self.params] for slot in SLOTS[options.kind]}
        self.updates = torch.zeros((), dtype=torch.float64, device=self.params[0].device)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def _with_gradients(self) -> tuple[list[int], list[Tensor]]:
        """Indices of the parameters that have a gradient, and the gradients."""
        pairs = [(i, p.grad) for i, p in enumerate(self.params) if p.grad is not None]
        return [i for i, _ in pairs], [grad for _, grad in pairs]

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of all gradients, 0-dim; NaN or infinite exactly if some gradient is, or overflows."""
        _, grads = self._with_gradients()
        if not grads:
            return torch.zeros_like(self.updates)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        return norm

    def values(self, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        """Learning rate, beta1 and beta2 now."""
        return progress.value(self.options.lr), progress.value(self.options.beta1), progress.value(self.options.beta2)

    @torch.no_grad()
    def update(self, progress: Progress, ema_decay: Tensor, norm: Tensor, skip: Tensor) -> None:
        """One step of the optimiser and of the average, nothing of it where `skip` (0-dim bool) is set.

        ema_decay: 0-dim float64;  norm: of the gradients
        The gradients are given back afterwards.
        """
        o = self.options
        scale = (o.clip_norm / norm.double()).clamp(max=1.0) if o.clip_norm else progress.value(1.0)
        lr, beta1, beta2 = self.values(progress)
        chosen, grads = self._with_gradients()
        averaged = o.kind == "adam" and not o.clip_weights  # by the kernel; else below, after the clipping
        if o.kind == "adam":
            adam_ema_(
                [self.params[i] for i in chosen],
                grads,
                [self.slots["exp_avg"][i] for i in chosen],
                [self.slots["exp_avg_sq"][i] for i in chosen],
                [self.average_params[i] for i in chosen if self.average_params and averaged],
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
            for i, grad in zip(chosen, grads, strict=True):
                self._update_simple(i, grad * scale.to(grad.dtype), lr, beta1, beta2, skip)
            self.updates.add_(torch.where(skip, 0.0, 1.0))
        if o.clip_weights:
            for p in self.params:
                torch.where(skip, p, p.clamp(-o.clip_weights, o.clip_weights), out=p)
        weight = torch.where(skip, 0.0, 1.0 - ema_decay)
        done = set(chosen) if averaged else set()
        for i, average in enumerate(self.average_params):
            if i not in done:
                average.lerp_(self.params[i], weight.to(average.dtype))
        if self.average_buffers is not None:  # running statistics are averaged like the weights they belong to
            self.average_buffers.average(self.buffers, weight)
        self.zero_grad()

    def _update_simple(self, i: int, grad: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, skip: Tensor) -> None:
        """SGD with momentum (torch.optim.SGD's form) or RMSprop (torch.optim.RMSprop's) of parameter number i."""
        p, dtype = self.params[i], grad.dtype
        if self.options.kind == "sgd":
            slot = self.slots["momentum"][i]
            delta = new = slot * beta1.to(dtype) + grad
        else:
            slot = self.slots["square_avg"][i]
            new = slot * beta2.to(dtype) + grad * grad * (1 - beta2).to(dtype)
            delta = grad / (new.sqrt() + self.options.eps)
        slot.copy_(torch.where(skip, slot, new))
        p.copy_(torch.where(skip, p, p - lr.to(dtype) * delta))

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
