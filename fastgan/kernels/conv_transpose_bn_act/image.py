"""The Triton kernel of the image layer: a transposed convolution with so few output channels that memory bounds it.

Every phase of every output channel is a column: of the 3x3 convolution with 4 Cout outputs that k = 4, s = 2, p = 1
comes to, and a pixel shuffle. To read x once, a program takes a patch of pixels, multiplies it by the weights of all
taps, [pixels, Cin] x [Cin, taps * columns], and then adds up, per output, the products of neighbouring pixels. A patch
overlaps its neighbours by what a phase reaches (phases.py: Patch).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from fastgan.kernels.conv_transpose_bn_act.parts import SIZES, activation, prologue


@triton.jit(do_not_specialize=SIZES)
def image_kernel(
    x, weight, bias, center, scale, shift, y, H, W, CIN, slope_in, slope_out,
    COUT: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, INNER_H: tl.constexpr, INNER_W: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As pointers.forward_kernel without statistics. BT >= TH TW, BC >= SH SW COUT: powers of two."""
    across, down = tl.cdiv(W, INNER_W), tl.cdiv(H, INNER_H)
    block = tl.program_id(0)
    n = block // (across * down)
    # What a phase reaches before a pixel; none is needed where the patch covers the map
    BEFORE_H: tl.constexpr = (TH - 1 - PH // SH) * (INNER_H != PATCH_H)
    BEFORE_W: tl.constexpr = (TW - 1 - PW // SW) * (INNER_W != PATCH_W)
    BM: tl.constexpr = PATCH_H * PATCH_W
    at = tl.arange(0, BM)
    h = block // across % down * INNER_H - BEFORE_H + at // PATCH_W
    w = block % across * INNER_W - BEFORE_W + at % PATCH_W
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    line = n * H + h
    if WIDE:
        line = line.to(tl.int64)

    # Column (tap, phase, output channel): which kernel element
    number = tl.arange(0, BT * BC)
    tap, phase, c = number // BC, number % BC // COUT, number % BC % COUT
    i, j, a, b = tap // TW, tap % TW, phase // SW, phase % SW
    known = (tap < TH * TW) & (phase < SH * SW)
    element = ((a + PH) % SH + SH * i) * (SW * TW) + (b + PW) % SW + SW * j
    acc = tl.zeros((BM, BT * BC), ACC)
    for k0 in range(0, CIN, BK):
        k = k0 + tl.arange(0, BK)
        there = inside[:, None] & (k < CIN)[None, :]
        pixels = tl.load(x + (line * W + w)[:, None] * CIN + k[None, :], mask=there, other=0.0)
        if PROLOGUE:
            pixels = prologue(pixels, there, center, scale, shift, k, CIN, slope_in, ACT_IN, ACC)
        both = (k < CIN)[:, None] & known[None, :]
        line_of = k[:, None] * (SH * TH * SW * TW) + element[None, :]
        by = tl.load(weight + line_of * COUT + c[None, :], mask=both, other=0.0)
        acc = tl.dot(pixels, by, acc, input_precision=PRECISION, out_dtype=ACC)

    # Output pixel (h, w) of a column takes the product at (h + dh, w + dw); those of the taps are added up
    dh, dw = (a + PH) // SH - i, (b + PW) // SW - j
    row, col = at[:, None] // PATCH_W + dh[None, :], at[:, None] % PATCH_W + dw[None, :]
    near = (row >= 0) & (row < PATCH_H) & (col >= 0) & (col < PATCH_W) & known[None, :]
    acc = tl.gather(acc, tl.where(near, row * PATCH_W + col, 0), axis=0)
    out = tl.sum(tl.reshape(tl.where(near, acc, 0.0), (BM, BT, BC)), axis=1)

    number = tl.arange(0, BC)
    phase, c = number // COUT, number % COUT
    a, b, known = phase // SW, phase % SW, phase < SH * SW
    if bias is not None:
        out = out + tl.load(bias + c, mask=known, other=0.0)[None, :].to(ACC)
    out = activation(out, slope_out, ACT_OUT)
    of_h, of_w = at // PATCH_W - BEFORE_H, at % PATCH_W - BEFORE_W
    inner = inside & (of_h >= 0) & (of_h < INNER_H) & (of_w >= 0) & (of_w < INNER_W)
    to = (line[:, None] * SH + a[None, :]) * (W * SW) + w[:, None] * SW + b[None, :]
    tl.store(y + to * COUT + c[None, :], out.to(y.dtype.element_ty), mask=inner[:, None] & known[None, :])
