"""The Triton kernels of the transposed convolution that load boxes of pixels by tensor descriptors (TMA, sm_90 and on).

A tile is a box of BB samples, BH rows and BW columns (phases.py: Box), shifted by the tap. Coordinates outside give
zeros, which is the zero padding. The outputs (SH, SW times larger) are taken apart into phases by their shape:

    [N, SH H, SW W, C]  as  [N H, SH, W, SW, C]        to store one phase of a box of (sample, row)
                        as  [N, H, SH, W, SW C]        to load one phase of a box that may begin above the sample

Otherwise as pointers.py, for channels that are multiples of 16 bytes. Descriptors are made by `launch`.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from fastgan.kernels.conv_transpose_bn_act.parts import SIZES, finish, prologue, write_statistics


@triton.jit
def box_at(block, H, W, BB: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """First sample, row and column of box number `block`."""
    across, down = tl.cdiv(W, BW), H // BH
    return block // (across * down) * BB, block // across % down * BH, block % across * BW


@triton.jit
def pixels_of(n0, h0, w0, BB: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """Sample, row and column of every row of a tile, [BB BH BW]."""
    at = tl.arange(0, BB * BH * BW)
    return n0 + at // (BH * BW), h0 + at // BW % BH, w0 + at % BW


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x, weight, bias, center, scale, shift, y, statistics, counts,
    N, H, W, CIN, COUT, slope_in, slope_out,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr, STATISTICS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As pointers.forward_kernel. Descriptors and their boxes:

    x [N, H, W, CIN]: [BB, BH, BW, BK];  weight [CIN, kernel, COUT]: [BK, 1, BN];
    y [N H, SH, W, SW, COUT]: [BB BH, 1, BW, 1, BN]
    """
    pid = tl.program_id(0)
    PHASES: tl.constexpr = SH * SW
    phase = pid % PHASES
    column = pid // PHASES % tl.cdiv(COUT, BN)
    block = pid // (PHASES * tl.cdiv(COUT, BN))
    a, b = phase // SW, phase % SW
    down, right = (a + PH) // SH, (b + PW) // SW
    first = (a + PH) % SH * (SW * TW) + (b + PW) % SW
    n0, h0, w0 = box_at(block, H, W, BB, BH, BW)
    n, h, w = pixels_of(n0, h0, w0, BB, BH, BW)
    BM: tl.constexpr = BB * BH * BW
    acc = tl.zeros((BM, BN), ACC)
    steps = tl.cdiv(CIN, BK)
    for step in range(TH * TW * steps):
        tap, k0 = step // steps, step % steps * BK
        i, j = tap // TW, tap % TW
        dh, dw = down - i, right - j
        at = tl.reshape(x.load([n0, h0 + dh, w0 + dw, k0]), (BM, BK))
        if PROLOGUE:
            there = (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
            k = k0 + tl.arange(0, BK)
            at = prologue(at, there[:, None], center, scale, shift, k, CIN, slope_in, ACT_IN, ACC)
        by = tl.reshape(weight.load([k0, first + i * (SH * SW * TW) + j * SW, column * BN]), (BK, BN))
        acc = tl.dot(at, by, acc, input_precision=PRECISION, out_dtype=ACC)

    channel = column * BN + tl.arange(0, BN)
    acc = finish(acc, bias, channel, COUT, slope_out, ACT_OUT)
    stored = acc.to(y.dtype)
    y.store([n0 * H + h0, a, w0, b, column * BN], tl.reshape(stored, (BB * BH, 1, BW, 1, BN)))
    if STATISTICS:
        valid = (n < N) & (w < W)
        tile = block * PHASES + phase
        write_statistics(stored, valid, statistics, counts, tile, channel, COUT, column == 0, ACC)


@triton.jit(do_not_specialize=SIZES)
def convolution_kernel(
    x, weight, bias, y, H, W, CIN, COUT, slope,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ACT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As pointers.convolution_kernel. CIN is a multiple of BK. Descriptors and their boxes:

    x [N, H, SH, W, SW CIN]: [BB, BH, 1, BW, BK];  weight [COUT, kernel CIN]: [BN, BK];
    y [N H, W, COUT]: [BB BH, BW, BN]
    """
    pid = tl.program_id(0)
    column, block = pid % tl.cdiv(COUT, BN), pid // tl.cdiv(COUT, BN)
    n0, h0, w0 = box_at(block, H, W, BB, BH, BW)
    KW: tl.constexpr = SW * TW
    BM: tl.constexpr = BB * BH * BW
    acc = tl.zeros((BM, BN), ACC)
    steps = CIN // BK
    for step in range(SH * TH * KW * steps):
        element, k0 = step // steps, step % steps * BK
        up, left = element // KW + (SH * TH - PH), element % KW + (KW - PW)  # plus a multiple of the stride: not < 0
        dh, dw = up // SH - TH, left // SW - TW
        at = x.load([n0, h0 + dh, up % SH, w0 + dw, left % SW * CIN + k0])
        by = weight.load([column * BN, step * BK])
        acc = tl.dot(tl.reshape(at, (BM, BK)), tl.trans(by), acc, input_precision=PRECISION, out_dtype=ACC)

    channel = column * BN + tl.arange(0, BN)
    acc = finish(acc, bias, channel, COUT, slope, ACT)
    y.store([n0 * H + h0, w0, column * BN], tl.reshape(acc.to(y.dtype), (BB * BH, BW, BN)))


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    x, grad, center, scale, shift, parts, N, H, W, CIN, COUT, span, slope,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """As pointers.weight_gradient_kernel, a part being `span` boxes. COUT is a multiple of BN. Descriptors, boxes:

    x [N, H, W, CIN]: [BB, BH, BW, BM];  grad [N, H, SH, W, SW COUT]: [BB, BH, 1, BW, BN];
    parts [parts, CIN, kernel COUT]: [1, BM, BN]
    Where a box sticks out of x or its rows, grad is zero there or not: x is zero then, and the prologue's value too.
    """
    KH: tl.constexpr = SH * TH
    KW: tl.constexpr = SW * TW
    BK: tl.constexpr = BB * BH * BW
    pid = tl.program_id(0)
    columns = (COUT // BN) * (KH * KW)
    order = pid % (KH * KW)
    phase, tap = order // (TH * TW), order % (TH * TW)
    kh = phase // SW + tap // TW * SH
    kw = phase % SW + tap % TW * SW
    up, left = kh + (KH - PH), kw + (KW - PW)
    dh, dw = up // SH - TH, left // SW - TW
    c0 = pid % columns // (KH * KW) * BN
    ci0 = pid // columns * BM
    part = tl.program_id(1)
    channel = ci0 + tl.arange(0, BM)
    acc = tl.zeros((BM, BN), ACC)
    boxes = tl.cdiv(N, BB) * (H // BH) * tl.cdiv(W, BW)
    for block in range(part * span, tl.minimum(boxes, (part + 1) * span)):
        n0, h0, w0 = box_at(block, H, W, BB, BH, BW)
        at = tl.reshape(x.load([n0, h0, w0, ci0]), (BK, BM))
        if PROLOGUE:
            n, _, w = pixels_of(n0, h0, w0, BB, BH, BW)
            there = (n < N) & (w < W)
            at = prologue(at, there[:, None], center, scale, shift, channel, CIN, slope, ACT, ACC)
        by = tl.reshape(grad.load([n0, h0 + dh, up % SH, w0 + dw, left % SW * COUT + c0]), (BK, BN))
        acc = tl.dot(tl.trans(at), by, acc, input_precision=PRECISION, out_dtype=ACC)
    parts.store([part, ci0, (kh * KW + kw) * COUT + c0], tl.reshape(acc, (1, BM, BN)))
