"""What the feature networks share: checked tensors of a state dict, and how a network is set up for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError

Network = TypeVar("Network", bound=nn.Module)


def tensor_of(state: Mapping[str, Tensor], name: str, shape: list[int], source: str) -> Tensor:
    """The tensor called `name`; FastganError where it is missing or has another shape than `shape`."""
    found = state.get(name)
    if found is None or list(found.shape) != shape:
        came = "nothing" if found is None else f"{list(found.shape)}"
        raise FastganError(f"{source}: expected {name} {shape}, got {came}; these are the weights of another network")
    return found


def filled(network: Network, state: Mapping[str, Tensor], source: str) -> Network:
    """`network`, made on the meta device, with the tensors of `state` that it has; further ones are passed over."""
    wanted = {name: tensor_of(state, name, list(slot.shape), source) for name, slot in network.state_dict().items()}
    network.load_state_dict(wanted, assign=True)
    return ready(network)


def ready(network: Network) -> Network:
    """For inference: channels-last, in evaluation mode, without gradients."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)
