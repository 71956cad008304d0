"""The core check of every op, without pytest: our implementation against float64 on the shapes that the tests use.

`fastgan doctor --verify` runs them on the GPUs that are here. Each returns how much was compared, and raises Unfit.
Bounds: float32 1e-5, sums 1e-4; bfloat16 and float16 twice the error of PyTorch's operations in that type.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels import (
    _runtime,
    adam_ema,
    batch_norm_act,
    conv_transpose_bn_act,
    counter_noise,
    ingest,
    masked_act,
    modulated_act,
    symmetric_product,
)
from fastgan.kernels._runtime.measure import Unfit, relative
from fastgan.kernels._runtime.verify import Check
from fastgan.kernels.activations import ACTS, activate
from fastgan.kernels.masked_act.reference import in_layout

HALF = (torch.bfloat16, torch.float16)
SUMS = 1e-4


def expect(what: str, made: Tensor, exact: Tensor, bound: float) -> int:
    """1, for one comparison. Raises Unfit where `made` is further from `exact` than that."""
    error = relative(made, exact)
    if made.shape != exact.shape or not error <= bound:  # NaN too
        raise Unfit(f"{what}: error {error:.2g}, where {bound:.2g} is allowed")
    return 1


def allowed(dtype: torch.dtype, library: Tensor, exact: Tensor, fp32: float = 1e-5) -> float:
    """The error that is allowed of a result of inputs in `dtype`; library: the same by PyTorch's operations."""
    return max(2 * relative(library, exact), fp32) if dtype in HALF else 1e-11 if dtype == torch.float64 else fp32


def random(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device, dtype)


def check_adam_ema(device: torch.device) -> int:
    """Three steps, in float32 and float64, against the reference in float64."""
    count, ours = 0, torch.ops.fastgan.adam_ema_
    for (case, shapes), dtype in itertools.product(adam_ema.CASES.items(), (torch.float32, torch.float64)):
        lists = [[random(s, device, dtype, 10 * k + i) for i, s in enumerate(shapes)] for k in range(5)]
        lists[3] = [v.square() for v in lists[3]]
        exact = [[t.double().clone() for t in tensors] for tensors in lists]
        scalars = [torch.tensor(v, dtype=torch.float64, device=device) for v in (0, 1e-2, 0.5, 0.99, 0.999, 0.7)]
        step, lr, beta1, beta2, ema_decay, scale = scalars
        skip, steps = torch.zeros((), dtype=torch.bool, device=device), (step, step.clone())
        for _ in range(3):
            ours(*lists, steps[0], lr, beta1, beta2, 1e-8, ema_decay, scale, skip)
            p, g, m, v, e = exact
            adam_ema.reference(p, g, m, v, e, steps[1], lr, beta1, beta2, 1e-8, ema_decay, scale, skip)
        for made, truth in zip(lists, exact, strict=True):
            bound = allowed(dtype, exact[0][0], exact[0][0])
            count += sum(expect(case, a, b, bound) for a, b in zip(made, truth, strict=True))
    return count


def check_counter_noise(device: torch.device) -> int:
    """All kinds against the reference: the same bits, but for the last ones of normal numbers."""
    count = 0
    kinds = (*counter_noise.UNIFORM.values(), *counter_noise.NORMAL.values(), counter_noise.INTEGERS)
    for (case, (n, size)), kind in itertools.product(counter_noise.CASES.items(), kinds):
        index = torch.arange(2**40, 2**40 + n, device=device)
        arguments = (-5, index, list(size), 3, kind, 1000)
        made, truth = torch.ops.fastgan.counter_noise(*arguments), counter_noise.reference(*arguments)
        if kind in counter_noise.NORMAL.values():
            expect(case, made, truth, 1e-6 if made.dtype == torch.float32 else 1e-13)
        elif not torch.equal(made, truth):
            raise Unfit(f"{case}: numbers of kind {kind} differ from the reference")
        count += 1
    return count


def check_ingest(device: torch.device) -> int:
    """The same bits as the reference, in every type, flipped and not."""
    count, generator = 0, torch.Generator().manual_seed(0)
    for (case, shape), dtype in itertools.product(ingest.CASES.items(), ingest.TYPES):
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
        for flip in (None, torch.arange(shape[0], device=device) % 3 != 1):
            if not torch.equal(ingest.ingest(pixels, flip, dtype), ingest.reference(pixels, flip, dtype)):
                raise Unfit(f"{case}: values in {dtype} differ from the reference")
            count += 1
    return count


def check_masked_act(device: torch.device) -> int:
    count = 0
    for case, (shape, channels_last) in masked_act.CASES.items():
        for dtype, slope in itertools.product((torch.float32, *HALF), (0.0, 0.2)):
            z, u = (in_layout(random(shape, device, dtype, seed), channels_last) for seed in (0, 1))
            bias = random(shape[1:2], device, dtype, 2) if len(shape) > 1 else None
            scale = random(shape[:1], device, dtype, 3) if bias is not None else None
            a, mask = masked_act.masked_act(z, slope, bias)
            theirs, bits = masked_act.reference(z, slope, bias)
            if not torch.equal(mask, bits):
                raise Unfit(f"{case}: the mask differs from that of the reference")
            exact = masked_act.reference(z.double(), slope, None if bias is None else bias.double())[0]
            count += expect(case, a, exact, allowed(dtype, theirs, exact))
            doubled = [None if t is None else t.double() for t in (bias, scale)]
            exact = masked_act.reference_apply(u.double(), mask, slope, *doubled)
            theirs = masked_act.reference_apply(u, mask, slope, bias, scale)
            made = masked_act.apply_mask(u, mask, slope, bias, scale)
            count += expect(case, made, exact, allowed(dtype, theirs, exact))
    return count


def check_modulated_act(device: torch.device) -> int:
    """A whole layer and the modulation alone: output and all gradients."""
    count, ours = 0, torch.ops.fastgan
    plain: tuple[Any, Any] = (modulated_act.reference, modulated_act.reference_backward)
    for (case, (shape, last)), dtype in itertools.product(modulated_act.CASES.items(), (torch.float32, *HALF)):
        n, c, h, w = shape
        if 0 in shape:
            continue
        x, grad = (in_layout(random(shape, device, dtype, seed), last) for seed in (0, 1))
        sizes = ((n, c), (n, 1, h, w), (), (c,))
        vectors = [random(size, device, torch.float32, 2 + seed) for seed, size in enumerate(sizes)]
        for what, (slope, gain) in {"layer": (0.2, 2**0.5), "modulate": (1.0, 1.0)}.items():
            given: list[Any] = [x, *vectors] if what == "layer" else [x, vectors[0], None, None, None]
            doubled = [None if t is None else t.double() for t in given]
            runs: list[tuple[Tensor, ...]] = []
            for tensors, g, (act, run) in (
                (given, grad, (ours.modulated_act, ours.modulated_act_backward)),
                (given, grad, plain),
                (doubled, grad.double(), plain),
            ):
                runs.append((act(*tensors, slope, gain), *run(g, *tensors, slope, gain)))
            for name, made, library, exact in zip(("output", "dx", "sums"), *runs, strict=True):
                fp32 = SUMS if name == "sums" else 1e-5
                count += expect(f"{case}, {what}: {name}", made, exact, allowed(dtype, library, exact, fp32))
    return count


def check_batch_norm_act(device: torch.device) -> int:
    """Training with every activation: statistics, output and gradients; also where mean^2 is far above the variance."""
    count = 0
    for case, (shape, channels_last) in batch_norm_act.CASES.items():
        large = math.prod(shape) > 200_000
        for dtype, act in itertools.product((torch.float32, *HALF), ("leaky_relu", "relu") if large else ACTS):
            x, grad = (in_layout(random(shape, device, dtype, seed), channels_last) for seed in (0, 1))
            weight, bias = (random(shape[1:2], device, torch.float32, seed) for seed in (2, 3))
            count += _compare_batch_norm_act(f"{case}, {act}", x, grad, weight, bias, act)
    for channels_last in (False, True):
        x = in_layout((1e4 + 1e-2 * random((16, 24, 9, 9), device, torch.float64)).float(), channels_last)
        grad, weight, bias = random(x.shape, device, x.dtype, 1), *(random((24,), device, x.dtype, s) for s in (2, 3))
        count += _compare_batch_norm_act("large mean", x, in_layout(grad, channels_last), weight, bias, "leaky_relu")
    return count


def _compare_batch_norm_act(what: str, x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, act: str) -> int:
    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        z = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
        return activate(z, ACTS[act], 0.2)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, var = batch_norm_act.batch_norm_stats(x)
        return batch_norm_act.batch_norm_act(x, mean, var, weight, bias, act=act, slope=0.2)

    var, mean = torch.var_mean(x.double(), [d for d in range(x.dim()) if d != 1], correction=0)
    made = batch_norm_act.batch_norm_stats(x)
    deviation = var.sqrt()
    count = expect(f"{what}: mean", (made[0] - mean) / deviation + 1, torch.ones_like(mean), SUMS)
    count += expect(f"{what}: variance", made[1], var, SUMS)
    results: list[list[Tensor]] = []
    for run, inputs in ((ours, (x, weight, bias)), (eager, (x, weight, bias)), (eager, (x, weight, bias))):
        exact = len(results) == 2
        leaves = [(t.double() if exact else t.detach()).clone().requires_grad_() for t in inputs]
        with torch.enable_grad():
            a = run(*leaves)
        results.append([a.detach(), *torch.autograd.grad(a, leaves, grad.double() if exact else grad)])
    for name, m, library, truth in zip(("output", "dx", "dweight", "dbias"), *results, strict=True):
        fp32 = 1e-5 if name in ("output", "dx") else SUMS
        count += expect(f"{what}: {name}", m, truth, allowed(x.dtype, library, truth, fp32))
    return count


def check_conv_transpose_bn_act(device: torch.device) -> int:
    """BatchNorm and activation, then the transposed convolution: output, its statistics, and the gradients."""
    count = 0
    for case, (n, cin, h, w, cout, kernel, g) in conv_transpose_bn_act.CASES.items():
        for dtype in HALF:
            x = random((n, cin, h, w), device, dtype).contiguous(memory_format=torch.channels_last)
            weight = random((cin, cout // g.groups, *kernel), device, dtype, 1) / math.sqrt(cin)
            scale, shift = (random((cin,), device, torch.float32, seed) for seed in (2, 3))
            count += _compare_conv_transpose(case, x, weight, scale, shift, g)
    return count


def _compare_conv_transpose(case: str, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, g: object) -> int:
    geometry = {name: getattr(g, name) for name in ("stride", "padding", "output_padding", "groups", "dilation")}

    def eager(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        a = F.leaky_relu(F.batch_norm(x, None, None, scale, shift, training=True), 0.2)
        return F.conv_transpose2d(a, weight, None, **geometry)

    def ours(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean, var = batch_norm_act.reference_stats(x.detach())
        norm = batch_norm_act.Norm(mean, var, scale, shift, 1e-5, ACTS["leaky_relu"], 0.2, True)
        y, mean, var = conv_transpose_bn_act.conv_transpose(x, weight, None, **geometry, norm=norm, want_stats=True)
        stats.extend(zip((mean, var), batch_norm_act.reference_stats(y.detach()), strict=True))
        return y

    stats: list[tuple[Tensor, Tensor]] = []
    results = []
    for run, exact in ((ours, False), (eager, False), (eager, True)):
        leaves = [(t.double() if exact else t.detach()).clone().requires_grad_() for t in (x, weight, scale, shift)]
        with torch.enable_grad():
            y = run(*leaves)
        grad = random(y.shape, x.device, x.dtype, 4).to(y.dtype)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
    count = 0
    for name, m, library, truth in zip(("output", "dx", "dweight", "dscale", "dshift"), *results, strict=True):
        count += expect(f"{case}: {name}", m, truth, allowed(x.dtype, library, truth))
    return count + sum(expect(f"{case}: statistics", made, truth, SUMS) for made, truth in stats)


def check_symmetric_product(device: torch.device) -> int:
    """With and without the polynomial; symmetric to the last bit, and the same bits again."""
    count = 0
    for case, shape in symmetric_product.CASES.items():
        a = random(shape, device, torch.float64) / math.sqrt(shape[-2])
        for b in (None, symmetric_product.reference(a, None, 1.0, 0.0, 0.0)):
            factors = (1.0, 0.0, 0.0) if b is None else (0.4, -1.3, 1.9)
            made = symmetric_product.native(a, b, factors)
            count += expect(case, made, symmetric_product.reference(a, b, *factors), 1e-13)
            if not torch.equal(made, made.mT) or not torch.equal(made, symmetric_product.native(a, b, factors)):
                raise Unfit(f"{case}: not symmetric, or not the same bits again")
    return count


CHECKS: dict[str, Check] = {
    "adam_ema": check_adam_ema,
    "batch_norm_act": check_batch_norm_act,
    "conv_transpose_bn_act": check_conv_transpose_bn_act,
    "counter_noise": check_counter_noise,
    "ingest": check_ingest,
    "masked_act": check_masked_act,
    "modulated_act": check_modulated_act,
    "symmetric_product": check_symmetric_product,
}


def verify_kernels(say: Callable[[str], None]) -> bool:
    """Checks every op on every kind of GPU that is here, a line each. Returns whether none has failed."""
    devices = _runtime.gpus()
    if not devices:
        say("nothing to verify: no CUDA device is here; on a CPU every kernel is as tested")
    outcomes = []
    for verdict in _runtime.verify_ops(CHECKS, devices):
        say(f"{verdict.op} on {verdict.device}: {verdict.outcome} ({verdict.detail})")
        outcomes.append(verdict.outcome)
    if "failed" in outcomes:
        say("PyTorch's operations run in place of what has failed; please report it")
    return "failed" not in outcomes
