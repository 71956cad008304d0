"""Calls of the Triton kernels of the transposed convolution that are compiled ahead of time.

Layers of DCGAN generators for images of 64², 128² and 256² pixels and of a vocoder, in bfloat16. Sizes of maps are not
compiled in, and few channels are: 8x8, 512 to 256 stands for 4x4, 1024 to 512. All layers are compiled for sm_90,
some for the others, for a kernel takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgan.kernels._runtime.aot import BUDGETS, AotCase
from fastgan.kernels.conv_transpose_bn_act import calls
from fastgan.kernels.conv_transpose_bn_act.calls import Call, How, Prologue
from fastgan.kernels.conv_transpose_bn_act.phases import Phases

K4 = Phases((2, 2), (2, 2), (1, 1))
K16 = Phases((1, 8), (1, 2), (0, 4))
K8 = Phases((1, 4), (1, 2), (0, 2))
# name -> (phases, N, H, W, Cin, Cout)
LAYERS = {
    "8x8, 512 to 256": (K4, 256, 8, 8, 512, 256),
    "16x16, 256 to 128": (K4, 256, 16, 16, 256, 128),
    "32x32, 128 to 64": (K4, 256, 32, 32, 128, 64),
    "64x64, 64 to 32": (K4, 256, 64, 64, 64, 32),
}
IMAGE_LAYERS = {"64x64, 64 to 3": (K4, 256, 64, 64, 64, 3), "128x128, 32 to 3": (K4, 256, 128, 128, 32, 3)}
VOCODER = {"k16 s8, 256 to 128": (K16, 16, 1, 256, 256, 128), "k8 s4, 128 to 64": (K8, 16, 1, 2048, 128, 64)}
EVERYWHERE = ("8x8, 512 to 256", "64x64, 64 to 32", "64x64, 64 to 3")
DESCRIPTORS = (90, 100, 120)
RELU, LEAKY_RELU, TANH = 1, 2, 3


def aot_cases(everything: bool = False) -> list[AotCase]:
    """everything: all layers for all architectures."""
    made = []
    for capability in BUDGETS:
        for version in ("pointers", "descriptors")[: 2 if capability in DESCRIPTORS else 1]:
            for layer, name, call in _calls(How(capability, version == "descriptors")):
                wanted = everything or capability == 90 or layer in EVERYWHERE
                if wanted and (version == "descriptors") == call.kernel.__module__.endswith("descriptors"):
                    case = f"{name}: {layer}, {version}"
                    made.append(
                        AotCase("conv_transpose", case, call.kernel, call.arguments, call.options, (capability,))
                    )
    return made


def _calls(how: How) -> Iterator[tuple[str, str, Call]]:
    """Layer, what of it, and call."""
    for layer, (phases, n, h, w, cin, cout) in (LAYERS | IMAGE_LAYERS | VOCODER).items():
        x, weight = _empty(n, h, w, cin), _empty(cin, *phases.kernel, cout)
        norm, act = _norm(cin), Prologue(act=LEAKY_RELU, slope=0.1)
        if layer in LAYERS:
            call, y, statistics, counts = calls.forward(x, weight, None, phases, norm, 0, 0.0, True, how)
            yield layer, "norm, forward, statistics", call
            assert statistics is not None
            assert counts is not None
            for call in calls.merge(statistics, counts, y.numel() // cout)[0]:
                yield layer, call.kernel.__name__, call
        elif layer in IMAGE_LAYERS:
            call, y = calls.image_layer(x, weight, _floats(cout), phases, norm, TANH, 0.0, how)
            yield layer, "norm, image layer, tanh", call
        else:
            call, y, *_ = calls.forward(x, weight, _floats(cout), phases, act, 0, 0.0, False, how)
            yield layer, "act, forward", call
            continue
        yield layer, "input gradient", calls.convolution(y, weight, None, phases, 0, 0.0, how)[0]
        for call in calls.weight_gradient(x, y, phases, norm, torch.bfloat16, how)[0]:
            yield layer, call.kernel.__name__, call
    layer = "16x16, 256 to 128"
    phases, n, h, w, cin, cout = LAYERS[layer]
    x, weight = _empty(n, h, w, cin), _empty(cin, *phases.kernel, cout)
    call, *_ = calls.forward(x, weight, _floats(cout), phases, Prologue(), RELU, 0.0, False, how)
    yield layer, "forward, act", call


def _norm(channels: int) -> Prologue:
    center, scale, shift = (_floats(channels) for _ in range(3))
    return Prologue(center, scale, shift, RELU)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _floats(channels: int) -> Tensor:
    return torch.empty(channels, device="meta")
