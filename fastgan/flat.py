"""All buffers of a network in one tensor per type: saving, restoring and averaging them takes a few operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
