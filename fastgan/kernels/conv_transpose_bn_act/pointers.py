"""The Triton kernels of the transposed convolution that address memory by pointers: for every GPU and every shape.

Tensors are [N, H, W, C] in memory, weights [Cin, kh, kw, Cout]. Numbers of a kernel: see phases.py; SH ... PW are
stride, taps per phase, and padding. WIDE: whether element numbers need 64 bits. The type of the products' sums is ACC.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from fastgan.kernels.conv_transpose_bn_act.parts import SIZES, finish, prologue, write_statistics


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x, weight, bias, center, scale, shift, y, statistics, counts,
    M, H, W, CIN, COUT, slope_in, slope_out,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr, STATISTICS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = act_out(convT(act_in((x - center) * scale + shift)) + bias), and the statistics of y.

    x: [N, H, W, CIN], M = N H W; y: [N, SH H, SW W, COUT]; statistics, counts: see write_statistics, or None
    One program per phase, BN output channels, and BM input pixels. Phases are innermost: they read the same x.
    """
    pid = tl.program_id(0)
    PHASES: tl.constexpr = SH * SW
    phase = pid % PHASES
    column = pid // PHASES % tl.cdiv(COUT, BN)
    block = pid // (PHASES * tl.cdiv(COUT, BN))
    a, b = phase // SW, phase % SW
    down, right = (a + PH) // SH, (b + PW) // SW
    first = (a + PH) % SH * (SW * TW) + (b + PW) % SW  # kernel element of tap (0, 0)

    pixel = block * BM + tl.arange(0, BM)
    inside = pixel < M
    h, w = pixel // W % H, pixel % W
    channel = column * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), ACC)
    steps = tl.cdiv(CIN, BK)
    for step in range(TH * TW * steps):
        tap, k = step // steps, step % steps * BK + tl.arange(0, BK)
        i, j = tap // TW, tap % TW
        dh, dw = down - i, right - j
        row = pixel + (dh * W + dw)
        there = inside & (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
        if WIDE:
            row = row.to(tl.int64)
        there = there[:, None] & (k < CIN)[None, :]
        at = tl.load(x + row[:, None] * CIN + k[None, :], mask=there, other=0.0)
        if PROLOGUE:
            at = prologue(at, there, center, scale, shift, k, CIN, slope_in, ACT_IN, ACC)
        element = first + i * (SH * SW * TW) + j * SW
        known = (k < CIN)[:, None] & (channel < COUT)[None, :]
        line = k[:, None] * (SH * TH * SW * TW) + element
        by = tl.load(weight + line * COUT + channel[None, :], mask=known, other=0.0)
        acc = tl.dot(at, by, acc, input_precision=PRECISION, out_dtype=ACC)

    acc = finish(acc, bias, channel, COUT, slope_out, ACT_OUT)
    stored = acc.to(y.dtype.element_ty)
    line = pixel // W
    if WIDE:
        line = line.to(tl.int64)
    row = (line * SH + a) * (W * SW) + w * SW + b
    written = inside[:, None] & (channel < COUT)[None, :]
    tl.store(y + row[:, None] * COUT + channel[None, :], stored, mask=written)
    if STATISTICS:
        tile = block * PHASES + phase
        write_statistics(stored, inside, statistics, counts, tile, channel, COUT, column == 0, ACC)


@triton.jit(do_not_specialize=SIZES)
def convolution_kernel(
    x, weight, bias, y, M, H, W, CIN, COUT, slope,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ACT: tl.constexpr, FLAT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = act(conv(x) + bias) with stride SH, SW: the input gradient of the transposed convolution, and a convolution.

    x: [N, SH H, SW W, CIN], y: [N, H, W, COUT], M = N H W; weight: [COUT, SH TH, SW TW, CIN]
    FLAT: k runs through kernel elements and channels as one, which wastes less where there are few channels
    """
    pid = tl.program_id(0)
    column, block = pid % tl.cdiv(COUT, BN), pid // tl.cdiv(COUT, BN)
    KH: tl.constexpr = SH * TH
    KW: tl.constexpr = SW * TW
    pixel = block * BM + tl.arange(0, BM)
    inside = pixel < M
    line, w = pixel // W, pixel % W
    h = line % H
    top = (line - h) * SH  # the sample's first row of x
    if WIDE:
        top = top.to(tl.int64)
    channel = column * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), ACC)
    steps = tl.cdiv(KH * KW * CIN, BK) if FLAT else KH * KW * tl.cdiv(CIN, BK)
    for step in range(steps):
        if FLAT:
            k = step * BK + tl.arange(0, BK)
            known = k < KH * KW * CIN
            element, c = (k // CIN)[None, :], (k % CIN)[None, :]
            line_of = k
        else:
            taps = tl.cdiv(CIN, BK)
            element, within = step // taps, step % taps * BK + tl.arange(0, BK)
            known = within < CIN
            c = within[None, :]
            line_of = element * CIN + within
        row = h[:, None] * SH + element // KW - PH
        col = w[:, None] * SW + element % KW - PW
        there = inside[:, None] & known[None, :] & (row >= 0) & (row < H * SH) & (col >= 0) & (col < W * SW)
        at = tl.load(x + ((top[:, None] + row) * (W * SW) + col) * CIN + c, mask=there, other=0.0)
        both = known[:, None] & (channel < COUT)[None, :]
        by = tl.load(weight + channel[None, :] * (KH * KW * CIN) + line_of[:, None], mask=both, other=0.0)
        acc = tl.dot(at, by, acc, input_precision=PRECISION, out_dtype=ACC)

    acc = finish(acc, bias, channel, COUT, slope, ACT)
    to = pixel.to(tl.int64) if WIDE else pixel
    written = inside[:, None] & (channel < COUT)[None, :]
    tl.store(y + to[:, None] * COUT + channel[None, :], acc.to(y.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    x, grad, center, scale, shift, parts, M, H, W, CIN, COUT, span, slope,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT: tl.constexpr, FLAT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """parts[i] = sum over pixels i * span ... of act((x - center) * scale + shift)ᵀ grad, per kernel element.

    x: [N, H, W, CIN], M = N H W; grad: [N, SH H, SW W, COUT]; parts: [parts, CIN, SH TH, SW TW, COUT], of type ACC
    FLAT: columns run through kernel elements and channels as one, which wastes less where there are few channels
    Kernel elements are innermost: they read the same x, and those of one phase the same grad.
    """
    KH: tl.constexpr = SH * TH
    KW: tl.constexpr = SW * TW
    width = KH * KW * COUT
    pid = tl.program_id(0)
    if FLAT:
        columns = tl.cdiv(width, BN)
        n = pid % columns * BN + tl.arange(0, BN)
        known = n < width
        element, c = (n // COUT)[None, :], (n % COUT)[None, :]
        column = n
    else:
        columns = tl.cdiv(COUT, BN) * (KH * KW)
        order = pid % (KH * KW)  # phase by phase, and within a phase tap by tap
        phase, tap = order // (TH * TW), order % (TH * TW)
        kh = phase // SW + tap // TW * SH
        kw = phase % SW + tap % TW * SW
        element = kh * KW + kw
        within = pid % columns // (KH * KW) * BN + tl.arange(0, BN)
        known = within < COUT
        c = within[None, :]
        column = element * COUT + within
    channel = pid // columns * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    acc = tl.zeros((BM, BN), ACC)
    end = tl.minimum(M, (part + 1) * span)
    for start in range(part * span, end, BK):
        pixel = start + tl.arange(0, BK)
        inside = pixel < end
        line, w = pixel // W, pixel % W
        h = line % H
        top = (line - h) * SH
        if WIDE:
            top = top.to(tl.int64)
            pixel = pixel.to(tl.int64)
        there = inside[:, None] & (channel < CIN)[None, :]
        at = tl.load(x + pixel[:, None] * CIN + channel[None, :], mask=there, other=0.0)
        if PROLOGUE:
            at = prologue(at, there, center, scale, shift, channel, CIN, slope, ACT, ACC)
        row = h[:, None] * SH + element // KW - PH
        col = w[:, None] * SW + element % KW - PW
        lit = inside[:, None] & known[None, :] & (row >= 0) & (row < H * SH) & (col >= 0) & (col < W * SW)
        by = tl.load(grad + ((top[:, None] + row) * (W * SW) + col) * COUT + c, mask=lit, other=0.0)
        acc = tl.dot(tl.trans(at), by, acc, input_precision=PRECISION, out_dtype=ACC)
    to = parts + (part.to(tl.int64) * CIN + channel[:, None]) * width + column[None, :]
    tl.store(to, acc, mask=(channel < CIN)[:, None] & known[None, :])


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(parts, out, numel, count, BLOCK: tl.constexpr):
    """out[i] = sum of parts[j, i] over j < count, in that order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    here = parts + at
    total = tl.load(here, mask=inside, other=0.0)
    for _ in range(1, count):
        here += numel
        total += tl.load(here, mask=inside, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
