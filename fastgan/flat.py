"""Many tensors in one per type: all buffers of a network, and the gradients of a turn on their way between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.dist import Ranks

ALIGNMENT = 64  # numbers; each gradient in a flat buffer starts at a multiple of it, for vector instructions


class FlatBuffers:
    """The buffers of `module` (running statistics and the like), moved into `flats`, one flat tensor per type.

    The module keeps its buffers under their names, as views; one that it replaces is copied back by `gather`.
    """

    def __init__(self, module: nn.Module) -> None:
        owners: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                owners.setdefault(buffer, []).append((owner, name))
        self.flats: list[Tensor] = []
        self._views: list[tuple[nn.Module, str, Tensor]] = []
        for dtype in dict.fromkeys(buffer.dtype for buffer in owners):
            group = [buffer for buffer in owners if buffer.dtype == dtype]
            flat = torch.cat([buffer.detach().reshape(-1) for buffer in group])
            for buffer, part in zip(group, torch.split(flat, [b.numel() for b in group]), strict=True):
                # .data: a version counter of its own, since autograd would take a change of one for a change of all.
                view = part.view(buffer.shape).data
                for owner, name in owners[buffer]:
                    setattr(owner, name, view)
                    self._views.append((owner, name, view))
            self.flats.append(flat)

    def gather(self) -> None:
        """Copy back every buffer that the module has replaced by another tensor."""
        for owner, name, view in self._views:
            buffer = getattr(owner, name)
            if buffer is not view:
                view.copy_(buffer)
                setattr(owner, name, view)

    def save(self) -> list[Tensor]:
        """Copies of all values, for `restore`."""
        self.gather()
        return [flat.clone() for flat in self.flats]

    def restore(self, saved: list[Tensor], where: Tensor) -> None:
        """Back to the saved values where `where` (0-dim bool, on the device) is set."""
        self.gather()
        for flat, old in zip(self.flats, saved, strict=True):
            torch.where(where, old, flat, out=flat)

    def average(self, values: FlatBuffers, weight: Tensor) -> None:
        """Move all floating-point values by `weight` (0-dim) of the way to those of `values`; copy the others."""
        for flat, value in zip(self.flats, values.flats, strict=True):
            if flat.is_floating_point():
                flat.lerp_(value, weight.to(flat.dtype))
            else:
                flat.copy_(value)


class GradientMean:
    """Means over all ranks of the gradients of a turn, in one flat buffer per type, with one all-reduce each."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._buffers: dict[tuple[Any, ...], tuple[Tensor, list[Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """Replace each `.grad` by its mean over the ranks; return that of `numbers` [K], which travels along.

        Which parameters have a gradient must be the same on all ranks. The sum is divided, so that the result is the
        gradient of the mean loss over the batches of all ranks, of equal size. What is not finite on one rank is not
        finite on any.
        """
        with_gradient = [p for p in parameters if p.grad is not None]
        kinds = list(dict.fromkeys([p.dtype for p in with_gradient if p.dtype in (torch.float32, torch.float64)]))
        wide = kinds[0] if kinds else torch.float64
        result = numbers
        for dtype in dict.fromkeys([wide, *(p.dtype for p in with_gradient)]):
            members = [p for p in with_gradient if p.dtype == dtype]
            given = [p.grad for p in members] + ([numbers.to(wide)] if dtype == wide else [])
            flat, views = self._buffer(dtype, [*members, *given[len(members) :]])  # type: ignore[list-item]
            torch._foreach_copy_(views, given)  # type: ignore[arg-type]
            self._ranks.sum_(flat)
            flat.div_(self._ranks.world)
            for p, view in zip(members, views, strict=False):
                p.grad = view
            if dtype == wide:
                result = views[-1].to(numbers.dtype)
        return result

    def _buffer(self, dtype: torch.dtype, like: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A flat tensor and its parts, each laid out as one of `like`; the same ones for the same layouts."""
        key = (dtype, *((tuple(t.shape), t.stride()) for t in like))
        if key not in self._buffers:
            places, end = [], 0
            for t in like:
                places.append(end)
                end += -(-t.numel() // ALIGNMENT) * ALIGNMENT
            flat = torch.zeros(end, dtype=dtype, device=like[0].device)
            strides = [torch.empty_like(t, device="meta").stride() for t in like]
            views = [flat.as_strided(t.shape, s, at) for t, s, at in zip(like, strides, places, strict=True)]
            self._buffers[key] = flat, views
        return self._buffers[key]
