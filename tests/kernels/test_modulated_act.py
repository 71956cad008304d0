"""modulated_act against float64 and the paper's weights per sample, its derivatives, and what it refuses."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from kernels.interpreter import interpret
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels import modulated_act as package
from fastgan.kernels.masked_act.reference import in_layout, is_channels_last
from fastgan.kernels.modulated_act import CASES, demodulation, modulate, modulated_act, reference, reference_backward

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)
GAIN = 2**0.5


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int, device: torch.device | str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def layer(case: str, dtype: torch.dtype, device: torch.device, *, shared: bool = False) -> list[Tensor]:
    """x, scale, noise, strength, bias of a case; vectors in float32 for half precision."""
    (n, c, h, w), channels_last = CASES[case]
    vectors = torch.float32 if dtype in HALF else dtype
    x = in_layout(random((n, c, h, w), dtype, 0, device), channels_last)
    sizes = ((n, c), (1 if shared else n, 1, h, w), (), (c,))
    return [x, *(random(size, vectors, seed, device) for seed, size in enumerate(sizes, start=1))]


def assert_near(ours: Tensor, theirs: Tensor, exact: Tensor, fp32: float) -> None:
    """`theirs`: the reference in the same type, whose error in half precision may be met twice."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert not ours.isnan().any()
    norm = exact.norm().clamp(min=1e-30)
    error, own = ((t.double() - exact).norm() / norm for t in (ours, theirs))
    bound = {torch.float32: fp32, torch.float64: 1e-13}.get(ours.dtype, 2 * own + 1e-6)
    assert error <= bound, f"error {error:.2g}"


# Large cases in the two types that training uses.
CASES_AND_TYPES = [
    pytest.param(case, dtype, marks=pytest.mark.long if "16x16" in case else ())
    for case, dtype in product(CASES, DTYPES)
    if "2-64" not in case or dtype in (DTYPES[0], DTYPES[2])
]


@pytest.mark.parametrize(("case", "dtype"), CASES_AND_TYPES)
@pytest.mark.usefixtures("implementation")
def test_both_passes_against_float64(case: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory is NaN: what is not written is seen
    try:
        for shared in (False, True) if "2-64" not in case else (False,):
            given = layer(case, dtype, device, shared=shared)
            grad = in_layout(random(CASES[case][0], dtype, 9, device), is_channels_last(given[0]))
            exact = [t.double() for t in given]
            out = modulated_act(*given)
            assert out.stride() == given[0].stride() or not out.numel()
            assert_near(out, reference(*given, 0.2, GAIN), reference(*exact, 0.2, GAIN), 1e-6)
            dx, sums = torch.ops.fastgan.modulated_act_backward(grad, *given, 0.2, GAIN)
            theirs = reference_backward(grad, *given, 0.2, GAIN)
            truth = reference_backward(grad.double(), *exact, 0.2, GAIN)
            assert_near(dx, theirs[0], truth[0], 1e-6)
            assert_near(sums, theirs[1], truth[1], 1e-5)
            alone = modulate(*given[:2])
            wide = given[0].to(given[1].dtype) * given[1][:, :, None, None]
            assert_near(alone, wide.to(dtype), exact[0] * exact[1][:, :, None, None], 1e-6)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("implementation")
def test_derivatives_to_the_second_order(device: torch.device) -> None:
    """The op's, those of its backward, and of x, scale, strength and bias together with plain operations."""
    for channels_last in (False, True):
        x = in_layout(random((2, 3, 3, 2), torch.float64, 0, device), channels_last).requires_grad_()
        noise = random((2, 1, 3, 2), torch.float64, 2, device)
        rest = [
            random(size, torch.float64, seed, device).requires_grad_()
            for seed, size in ((1, (2, 3)), (3, ()), (4, (3,)))
        ]

        def run(x: Tensor, scale: Tensor, strength: Tensor, bias: Tensor, noise: Tensor = noise) -> Tensor:
            return modulated_act(x, scale, noise, strength, bias)

        assert torch.autograd.gradcheck(run, (x, *rest))
        assert torch.autograd.gradgradcheck(run, (x, *rest))
        assert torch.autograd.gradgradcheck(modulate, (x, rest[0]))


@pytest.mark.usefixtures("implementation")
def test_third_derivatives_are_those_of_the_reference(device: torch.device) -> None:
    x, scale = (random(s, torch.float64, len(s), device).requires_grad_() for s in ((2, 3, 4, 4), (2, 3)))
    noise, strength = random((2, 1, 4, 4), torch.float64, 2, device), random((), torch.float64, 3, device)
    strength, bias = strength.requires_grad_(), random((3,), torch.float64, 4, device).requires_grad_()

    def third(act) -> list[Tensor]:
        value, leaves = act(x, scale, noise, strength, bias).pow(3).sum(), [x, scale, strength, bias]
        for _ in range(2):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.pow(2).sum() for g in grads)
        return list(torch.autograd.grad(value, leaves))

    ours, theirs = third(modulated_act), third(lambda *given: reference(*given, 0.2, GAIN))
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-10)


def test_it_is_the_convolution_with_weights_per_sample() -> None:
    """Equations 1 and 3 of the paper with explicit weights, in float64."""
    x, s = random((3, 4, 6, 5), torch.float64, 0), random((3, 4), torch.float64, 1)
    w = random((7, 4, 3, 3), torch.float64, 2)
    ours = modulated_act(
        F.conv2d(modulate(x, s), w, padding=1), demodulation(s, w.square().sum((2, 3)).mT), slope=1.0, gain=1.0
    )
    for n in range(3):
        weights = s[n][None, :, None, None] * w
        weights = weights / (weights.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(ours[n], F.conv2d(x[n : n + 1], weights, padding=1)[0], rtol=1e-12, atol=1e-12)


def test_demodulated_outputs_have_unit_variance() -> None:
    x = torch.randn(64, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    s, w = 10 * random((64, 32), torch.float32, 1).exp(), 0.01 * random((24, 32, 3, 3), torch.float32, 2)
    y = modulate(F.conv2d(modulate(x, s), w), demodulation(s, w.square().sum((2, 3)).mT))
    assert y.std() == pytest.approx(1, abs=0.02)
    assert y.var((0, 2, 3)).sub(1).abs().max() < 0.15


def test_registration_holds() -> None:
    given = [
        t.requires_grad_(t.dim() != 4 or t.shape[1] > 1) for t in layer("odd sizes", torch.float64, torch.device("cpu"))
    ]
    torch.library.opcheck(torch.ops.fastgan.modulated_act.default, (*given, 0.2, GAIN))
    grad = random((3, 5, 7, 9), torch.float64, 9).requires_grad_()
    torch.library.opcheck(torch.ops.fastgan.modulated_act_backward.default, (grad, *given, 0.2, GAIN))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, r"expected x \[N, C, H, W\], got \(3, 5\)"),
        (
            {"x": torch.zeros(3, 5, 2, 2, dtype=torch.int64)},
            "expected x in float32, float64, bfloat16 or float16, got int64",
        ),
        ({"scale": torch.zeros(5)}, r"expected scale of shape \(3, 5\) for x \(3, 5, 2, 2\), got \(5,\)"),
        ({"noise": torch.zeros(3, 5, 2, 2)}, r"expected noise of shape \(3, 1, 2, 2\) or \(1, 1, 2, 2\)"),
        ({"strength": None}, "expected both noise and strength or neither"),
        ({"bias": torch.zeros(5, dtype=torch.float64)}, "expected bias in the type of x, float32, got float64"),
        ({"noise": torch.zeros(3, 1, 2, 2, requires_grad=True)}, r"the noise has no derivative; give noise.detach\(\)"),
        ({"gain": 0.0}, "expected a gain above 0, got 0.0"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    good = {
        "x": torch.zeros(3, 5, 2, 2),
        "scale": torch.zeros(3, 5),
        "noise": torch.zeros(3, 1, 2, 2),
        "strength": torch.zeros(()),
        "bias": torch.zeros(5),
    }
    with pytest.raises(FastganError, match=f"modulated_act: {message}"):
        modulated_act(**{**good, **change})


INTERPRETED = """
import torch
from fastgan.kernels.modulated_act import CASES, reference, reference_backward, triton
from fastgan.kernels.masked_act.reference import in_layout
for case in ("odd sizes", "odd sizes, channels-last", "one pixel", "no pixels", "few channels, channels-last"):
    (n, c, h, w), last = CASES[case]
    for shared in (False, True):
        x, grad = (in_layout(torch.randn(n, c, h, w), last) for _ in range(2))
        vectors = [torch.randn(s) for s in ((n, c), (1 if shared else n, 1, h, w), (), (c,))]
        for given, slope, gain in ((vectors, 0.2, 1.5), ([vectors[0], None, None, None], 1.0, 1.0)):
            out, dx = (torch.full_like(x, torch.nan) for _ in range(2))
            sums = torch.full((3, n, c), torch.nan)
            triton.launch(x, given, slope, gain, out, None, None)
            triton.launch(x, given, slope, gain, dx, grad, sums)
            torch.testing.assert_close(out, reference(x, *given, slope, gain), rtol=1e-5, atol=1e-5)
            exact = reference_backward(grad, x, *given, slope, gain)
            torch.testing.assert_close((dx, sums), exact, rtol=1e-4, atol=1e-4)
print("checked")
"""


def test_triton_kernels_in_the_interpreter() -> None:
    assert interpret("-c", INTERPRETED, timeout=100).strip() == "checked"
    assert package.TYPES
