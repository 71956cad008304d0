"""Images made earlier, shown to a critic again (Shrivastava et al. 2017, arXiv:1612.07828; CycleGAN, section 4).

A new image is either shown and forgotten, or stored in the place of an older one that is shown instead: half and half.
The places are buffers of the module, so that a checkpoint has them and a turn that is not applied leaves them alone.
Image number i of the global batch has places of its own, and takes one of them at random: what happens depends neither
on the order within the batch nor on how many ranks share it. All ranks have the same buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.contract import Draw
from fastgan.dist import current


class ImageBuffer(nn.Module):
    """places: [P, S, S, C] images, channels last as those that come;  used: [P] 1 where there is one.

    With P = 0 every image is shown as it is. Of a batch of more than P images, only the first P take part.
    """

    places: Tensor
    used: Tensor

    def __init__(self, count: int, channels: int, size: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.zeros(count, size, size, channels))
        self.register_buffer("used", torch.zeros(count))

    @torch.no_grad()
    def exchange(self, images: Tensor, draw: Draw) -> Tensor:
        """What the critic is shown for new images [N, C, S, S], without a gradient. Draws twice."""
        coin, choice = draw.uniform(), draw.uniform()
        if not len(self.places):
            return images.detach()
        pixels = images.detach().permute(0, 2, 3, 1).to(self.places.dtype)
        everyone, coins, choices = (_of_all_ranks(t) for t in (pixels, coin, choice))
        part = min(len(everyone), len(self.places))
        each = len(self.places) // part
        row = torch.arange(part, device=images.device)
        slot = row + part * (choices[:part] * each).long().clamp(max=each - 1)
        new, old = everyone[:part], self.places.index_select(0, slot)
        full = self.used.index_select(0, slot) > 0
        swap = full & (coins[:part] < 0.5)
        shown = torch.where(swap[:, None, None, None], old, new)
        stored = torch.where((swap | ~full)[:, None, None, None], new, old)
        self.places.index_copy_(0, slot, stored)
        self.used.index_fill_(0, slot, 1.0)
        begin, count = current().rank * len(images), len(images)
        mine = torch.cat([shown, everyone[part:]])[begin : begin + count]
        return mine.permute(0, 3, 1, 2).to(images.dtype)


def _of_all_ranks(tensor: Tensor) -> Tensor:
    """[world N, ...], the tensors [N, ...] of the ranks of this turn one after the other."""
    ranks = current()
    if ranks.world == 1:
        return tensor
    whole = tensor.new_zeros(ranks.world * len(tensor), *tensor.shape[1:])
    whole[ranks.rank * len(tensor) : (ranks.rank + 1) * len(tensor)] = tensor
    return ranks.sum_(whole)
