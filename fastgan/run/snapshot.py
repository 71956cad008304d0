"""Tensors as they are at one moment, in host memory, and as the bytes of a safetensors file, without copying again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Names of the format (https://github.com/huggingface/safetensors) for torch's types
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}

Groups = Mapping[str, Mapping[str, Tensor]]


class Snapshot:
    """Host copies of groups of tensors, in memory that is used again by the next `take`.

    GPUs copy on their own: the caller's stream goes on behind the copies, and `wait` returns when they have arrived.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}
        self._arrived: list[torch.cuda.Event] = []

    @torch.no_grad()
    def take(self, groups: Groups) -> dict[str, dict[str, Tensor]]:
        """The groups as they are now, dense, each tensor in memory of its own. What was taken before is overwritten."""
        taken: dict[str, dict[str, Tensor]] = {}
        devices = set()
        for group, tensors in groups.items():
            taken[group] = {}
            for name, tensor in tensors.items():
                copy = self._place(group, name, tensor)
                copy.copy_(tensor.detach(), non_blocking=True)
                taken[group][name] = copy
                devices |= {tensor.device} if tensor.is_cuda else set()
        self._arrived = []
        for device in devices:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._arrived.append(event)
        return taken

    def wait(self) -> None:
        """Returns when everything that was taken has arrived, on any thread."""
        for event in self._arrived:
            event.synchronize()

    def _place(self, group: str, name: str, tensor: Tensor) -> Tensor:
        place = self._memory.get((group, name))
        if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[group, name] = place
        return place


def file_parts(tensors: Mapping[str, Tensor]) -> list[Any]:
    """A safetensors file of dense CPU tensors, as buffers one after the other. The tensors' own memory is among them.

    Nothing here computes: a thread beside the training loop may call it without starting a pool of OpenMP threads.
    """
    header: dict[str, Any] = {}
    parts: list[Any] = [b""]
    end = 0
    # Wide types first, so that each tensor is at a multiple of its size.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        if tensor.numel():
            parts.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts[0] = len(text).to_bytes(8, "little") + text
    return parts
