"""Calls of the Triton kernels of the transposed convolution that are compiled ahead of time.

Layers of DCGAN generators for images of 64², 128² and 256² pixels and of a vocoder, in bfloat16. Sizes of maps are not
compiled in, so that layers of one table row stand for those of others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgan.kernels._runtime.aot import BUDGETS, AotCase
from fastgan.kernels.conv_transpose_bn_act import calls
from fastgan.kernels.conv_transpose_bn_act.calls import Call, How, Prologue
from fastgan.kernels.conv_transpose_bn_act.phases import SMALL_SHARED, Phases

K4 = Phases((2, 2), (2, 2), (1, 1))
K16 = Phases((1, 8), (1, 2), (0, 4))
K8 = Phases((1, 4), (1, 2), (0, 2))
# name -> (phases, N, H, W, Cin, Cout)
LAYERS = {
    "8x8, 512 to 256": (K4, 256, 8, 8, 512, 256),
    "16x16, 256 to 128": (K4, 256, 16, 16, 256, 128),
    "32x32, 128 to 64": (K4, 256, 32, 32, 128, 64),
    "64x64, 64 to 32": (K4, 256, 64, 64, 64, 32),
    "vocoder k16 s8, 512 to 256": (K16, 16, 1, 32, 512, 256),
    "vocoder k8 s4, 128 to 64": (K8, 16, 1, 2048, 128, 64),
}
IMAGES = {"32x32, 128 to 3": (K4, 256, 32, 32, 128, 3), "128x128, 32 to 3": (K4, 256, 128, 128, 32, 3)}
RELU, LEAKY_RELU, TANH = 1, 2, 3
ROOMY = tuple(c for c in BUDGETS if c not in SMALL_SHARED)


def aot_cases() -> list[AotCase]:
    made = []
    for version, descriptors, groups in (
        ("pointers", False, (ROOMY, SMALL_SHARED)),
        ("descriptors", True, ((90, 100), (120,))),
    ):
        for capabilities in groups:
            for name, call in _calls(How(capabilities[0], descriptors)):
                if descriptors == ("descriptors" in call.kernel.__module__):
                    label = f"{name}, {version}"
                    made.append(
                        AotCase("conv_transpose", label, call.kernel, call.arguments, call.options, capabilities)
                    )
    return made


def _calls(how: How) -> Iterator[tuple[str, Call]]:
    for name, (phases, n, h, w, cin, cout) in LAYERS.items():
        x, weight = _empty(n, h, w, cin), _empty(cin, *phases.kernel, cout)
        if phases is K4:
            call, y, statistics, counts = calls.forward(x, weight, None, phases, _norm(cin), 0, 0.0, True, how)
            yield f"norm, forward, statistics: {name}", call
            assert statistics is not None
            assert counts is not None
            for call in calls.merge(statistics, counts, y.numel() // cout)[0]:
                yield f"{call.kernel.__name__}: {name}", call
        else:
            act = Prologue(act=LEAKY_RELU, slope=0.1)
            call, y, *_ = calls.forward(x, weight, _floats(cout), phases, act, 0, 0.0, False, how)
            yield f"act, forward: {name}", call
        yield f"input gradient: {name}", calls.convolution(y, weight, None, phases, 0, 0.0, how)[0]
        for call in calls.weight_gradient(x, y, phases, _norm(cin), torch.bfloat16, how)[0]:
            yield f"{call.kernel.__name__}: {name}", call
    phases, n, h, w, cin, cout = LAYERS["16x16, 256 to 128"]
    x, weight = _empty(n, h, w, cin), _empty(cin, *phases.kernel, cout)
    yield "forward, act", calls.forward(x, weight, _floats(cout), phases, Prologue(), RELU, 0.0, False, how)[0]
    for name, (phases, n, h, w, cin, cout) in IMAGES.items():
        x, weight = _empty(n, h, w, cin), _empty(cin, *phases.kernel, cout)
        call, y = calls.image_layer(x, weight, _floats(cout), phases, _norm(cin), TANH, 0.0, how)
        yield f"norm, image layer, tanh: {name}", call
        yield f"input gradient: {name}", calls.convolution(y, weight, None, phases, 0, 0.0, how)[0]
        for call in calls.weight_gradient(x, y, phases, _norm(cin), torch.bfloat16, how)[0]:
            yield f"{call.kernel.__name__}: {name}", call


def _norm(channels: int) -> Prologue:
    center, scale, shift = (_floats(channels) for _ in range(3))
    return Prologue(center, scale, shift, RELU)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _floats(channels: int) -> Tensor:
    return torch.empty(channels, device="meta")
