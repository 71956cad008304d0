"""adam_ema_ against torch.optim.Adam followed by a moving average, and what it promises beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.errors import FastganError
from fastgan.kernels import adam_ema
from fastgan.kernels.adam_ema import CASES, TYPES, adam_ema_

SMALL = CASES["odd sizes"]


@dataclass
class Lists:
    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    emas: list[Tensor]

    def all(self) -> list[Tensor]:
        return [tensor for field in fields(self) for tensor in getattr(self, field.name)]

    def copy(self) -> Lists:
        return Lists(*([tensor.clone() for tensor in getattr(self, field.name)] for field in fields(self)))


def make(
    shapes: tuple[tuple[int, ...], ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Lists:
    generator = torch.Generator().manual_seed(seed)

    def random(kind: torch.dtype = dtype) -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, kind) for shape in shapes]

    return Lists(random(), random(grad_dtype or dtype), random(), [v.square() for v in random()], random())


def scalars(device: torch.device, *, skip: bool = False, eps: float = 1e-8, **changed: float) -> dict[str, Any]:
    numbers = {"step": 3.0, "lr": 1e-3, "beta1": 0.5, "beta2": 0.99, "ema_decay": 0.99, "grad_scale": 1.0} | changed
    tensors = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in numbers.items()}
    return {**tensors, "skip": torch.tensor(skip, device=device), "eps": eps}


def call(lists: Lists, numbers: dict[str, Any]) -> None:
    adam_ema_(lists.params, lists.grads, lists.exp_avgs, lists.exp_avg_sqs, lists.emas, **numbers)


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """|ours - theirs| / |theirs| in the Euclidean norm of all tensors together."""
    a, b = (torch.cat([tensor.detach().flatten() for tensor in tensors]).double() for tensors in (ours, theirs))
    return ((a - b).norm() / b.norm()).item() if b.numel() else 0.0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.usefixtures("implementation")
def test_equals_adam_and_an_average_step_for_step(dtype: torch.dtype, bound: float, device: torch.device) -> None:
    """25 steps in which the learning rate, the betas and the decay change every time."""
    ours = make(SMALL, device, dtype)
    for moment in (*ours.exp_avgs, *ours.exp_avg_sqs):
        moment.zero_()
    numbers = scalars(device, step=0.0)
    theirs = [param.clone().requires_grad_() for param in ours.params]
    averages = [ema.clone() for ema in ours.emas]
    optimizer = torch.optim.Adam(theirs, lr=1.0, eps=1e-8, foreach=False)
    generator = torch.Generator().manual_seed(1)
    for step in range(25):
        lr, beta1, beta2 = 1e-2 / (step + 1), 0.9 * math.cos(step / 20), 0.9 + 0.099 * step / 25
        decay, scale = 0.5 + 0.49 * step / 25, 1 / (1 + step % 3)
        optimizer.param_groups[0].update(lr=lr, betas=(beta1, beta2))
        for name, value in (
            ("lr", lr),
            ("beta1", beta1),
            ("beta2", beta2),
            ("ema_decay", decay),
            ("grad_scale", scale),
        ):
            numbers[name].fill_(value)
        for grad, param in zip(ours.grads, theirs, strict=True):
            grad.copy_(torch.randn(grad.shape, generator=generator, dtype=torch.float64))
            param.grad = grad * scale
        optimizer.step()
        torch._foreach_lerp_(averages, [param.detach() for param in theirs], 1 - decay)
        call(ours, numbers)
        state = [optimizer.state[param] for param in theirs]
        assert numbers["step"].item() == step + 1
        assert relative(ours.params, theirs) < bound
        assert relative(ours.emas, averages) < bound
        assert relative(ours.exp_avgs, [s["exp_avg"] for s in state]) < bound
        assert relative(ours.exp_avg_sqs, [s["exp_avg_sq"] for s in state]) < bound


@pytest.mark.parametrize(
    ("case", "dtype", "grad_dtype"),
    [(case, *types) for case in CASES for types in TYPES if "dcgan" not in case or types == (torch.float32,) * 2],
)
@pytest.mark.usefixtures("implementation")
def test_every_case_agrees_with_the_reference_in_float64(
    case: str, dtype: torch.dtype, grad_dtype: torch.dtype, device: torch.device
) -> None:
    ours = make(CASES[case], device, dtype, grad_dtype)
    exact = Lists(*([t.double() for t in getattr(ours, field.name)] for field in fields(ours)))
    numbers, same = scalars(device, grad_scale=0.7), scalars(device, grad_scale=0.7)
    call(ours, numbers)
    adam_ema.reference(**vars(exact), **same)
    assert numbers["step"].item() == same["step"].item() == 4
    for field in set(vars(ours)) - {"grads"}:
        assert relative(getattr(ours, field), getattr(exact, field)) < (1e-15 if dtype == torch.float64 else 2e-7)


@pytest.mark.usefixtures("implementation")
def test_without_an_average(device: torch.device) -> None:
    with_average = make(SMALL, device)
    without = with_average.copy()
    without.emas = []
    call(with_average, scalars(device))
    call(without, scalars(device))
    assert all(map(torch.equal, without.params, with_average.params))


@pytest.mark.usefixtures("implementation")
def test_no_parameters_at_all_still_count_the_step(device: torch.device) -> None:
    numbers = scalars(device)
    call(Lists([], [], [], [], []), numbers)
    assert numbers["step"].item() == 4


@pytest.mark.usefixtures("implementation")
def test_a_skipped_step_leaves_every_byte(device: torch.device) -> None:
    """Whatever the gradients, the state and the scalars hold: NaN, infinities and signed zeros too."""
    lists = make(SMALL, device)
    for tensors in (lists.params, lists.exp_avgs, lists.exp_avg_sqs, lists.emas):
        tensors[3][:4] = torch.tensor([-0.0, math.inf, -math.inf, math.nan])
    for grad in lists.grads:
        grad.fill_(math.nan)
    before = [tensor.clone().view(torch.uint8) for tensor in lists.all() if tensor.dim()]
    numbers = scalars(device, skip=True, grad_scale=math.inf, ema_decay=math.nan, eps=0.0)
    call(lists, numbers)
    assert numbers["step"].item() == 3
    assert all(map(torch.equal, [t.view(torch.uint8) for t in lists.all() if t.dim()], before))


@pytest.mark.usefixtures("implementation")
def test_non_finite_gradients_are_not_hidden(device: torch.device) -> None:
    lists = make(((6,),), device)
    lists.grads[0][:3] = torch.tensor([math.nan, math.inf, 0.0])
    call(lists, scalars(device))
    for tensor in (lists.params[0], lists.exp_avgs[0], lists.exp_avg_sqs[0], lists.emas[0]):
        assert not tensor[:2].isfinite().any()
        assert tensor[2:].isfinite().all()


@pytest.mark.usefixtures("implementation")
def test_ends_of_the_average_and_of_the_first_moment_are_exact(device: torch.device) -> None:
    """Decay 0 copies, decay 1 keeps; beta1 = 0 keeps nothing of the past; an average of equals does not drift."""
    copied, kept, equal = make(SMALL, device), make(SMALL, device), make(SMALL, device)
    call(copied, scalars(device, ema_decay=0.0, beta1=0.0))
    assert all(map(torch.equal, copied.emas, copied.params))
    assert all(map(torch.equal, copied.exp_avgs, copied.grads))
    before = [ema.clone() for ema in kept.emas]
    call(kept, scalars(device, ema_decay=1.0))
    assert all(map(torch.equal, kept.emas, before))
    equal.emas = [param.clone() for param in equal.params]
    for _ in range(50):
        call(equal, scalars(device, lr=0.0, ema_decay=0.999))
    assert all(map(torch.equal, equal.emas, equal.params))


@pytest.mark.usefixtures("implementation")
def test_same_bits_twice_and_with_more_threads(device: torch.device) -> None:
    first, second = make(CASES["larger than a chunk"], device), make(CASES["larger than a chunk"], device)
    call(first, scalars(device))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        call(second, scalars(device))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, first.all(), second.all()))


def in_layouts(lists: Lists) -> Lists:
    """The same numbers: parameters and state channels-last, transposed, not dense; gradients contiguous."""
    image, matrix, gap = range(3)

    def lay_out(tensors: list[Tensor]) -> list[Tensor]:
        strided = torch.zeros(2 * tensors[gap].numel(), device=tensors[gap].device)[::2]
        return [
            tensors[image].to(memory_format=torch.channels_last),
            tensors[matrix].t().contiguous().t(),
            strided.copy_(tensors[gap]),
        ]

    return Lists(
        *(getattr(lists, f.name) if f.name == "grads" else lay_out(getattr(lists, f.name)) for f in fields(lists))
    )


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.usefixtures("implementation")
def test_any_strides(dense: bool, device: torch.device) -> None:
    plain = make(((5, 6, 3, 3), (7, 9), (11,)), device)
    other = in_layouts(plain)
    if dense:  # those that the native kernel walks as one run of memory, with the gradients laid out anew
        plain, other = (Lists(*(getattr(x, f.name)[:2] for f in fields(x))) for x in (plain, other))
    strides = [tensor.stride() for tensor in other.all()]
    call(plain, scalars(device))
    call(other, scalars(device))
    assert relative(other.all(), plain.all()) < 3e-7
    assert [tensor.stride() for tensor in other.all()] == strides


@pytest.mark.usefixtures("implementation")
def test_views_that_are_not_aligned(device: torch.device) -> None:
    plain = make(((4099,), (33,)), device)
    shifted = Lists(*([torch.cat([t.new_zeros(1), t])[1:] for t in getattr(plain, f.name)] for f in fields(plain)))
    call(plain, scalars(device))
    call(shifted, scalars(device))
    assert all(map(torch.equal, shifted.all(), plain.all()))


@pytest.mark.usefixtures("implementation")
def test_autograd_notices_the_change(device: torch.device) -> None:
    weight = torch.randn(4, device=device, requires_grad=True)
    lists = make(((4,),), device)
    lists.params = [weight]
    loss = (weight * weight).sum()
    call(lists, scalars(device))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class NoHostRead(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a value was read on the host"
        return func(*args, **(kwargs or {}))


def test_the_reference_reads_nothing_on_the_host() -> None:
    lists, cpu = make(SMALL, torch.device("cpu")), torch.device("cpu")
    with NoHostRead():
        adam_ema.reference(**vars(lists), **scalars(cpu))
        with pytest.raises(AssertionError, match="read on the host"):
            scalars(cpu)["lr"].item()


@pytest.mark.gpu
@pytest.mark.usefixtures("implementation")
def test_captured_into_a_graph_without_waiting() -> None:
    device = torch.device("cuda", 0)
    lists, expected = make(SMALL, device), make(SMALL, device)
    numbers, same = scalars(device), scalars(device)
    warm = make(SMALL, device)
    call(warm, scalars(device))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            call(lists, numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for lr in (1e-3, 1e-2, 1e-4):
        numbers["lr"].fill_(lr)
        same["lr"].fill_(lr)
        graph.replay()
        call(expected, same)
    assert all(map(torch.equal, lists.all(), expected.all()))
    assert numbers["step"].item() == same["step"].item() == 6


@pytest.mark.usefixtures("implementation")
def test_opcheck(device: torch.device) -> None:
    for emas in (True, False):
        lists, numbers = make(((3, 4), (5,)), device), scalars(device)
        lists.emas = lists.emas if emas else []
        arguments = (*vars(lists).values(), *(numbers[name] for name in ("step", "lr", "beta1", "beta2", "eps")))
        arguments += tuple(numbers[name] for name in ("ema_decay", "grad_scale", "skip"))
        torch.library.opcheck(torch.ops.fastgan.adam_ema_.default, arguments)


@pytest.mark.usefixtures("implementation")
def test_under_torch_compile(device: torch.device) -> None:
    def step(lists: list[list[Tensor]], numbers: dict[str, Any]) -> list[Tensor]:
        adam_ema_(*lists, **numbers)
        return [param * 2 for param in lists[0]]

    eager, compiled = make(((3, 4), (5,)), device), make(((3, 4), (5,)), device)
    numbers, same = scalars(device), scalars(device)
    doubled = step(list(vars(eager).values()), numbers)
    twice = torch.compile(step, fullgraph=True, backend="aot_eager")(list(vars(compiled).values()), same)
    assert all(map(torch.equal, doubled, twice))
    assert all(map(torch.equal, eager.all(), compiled.all()))
    assert same["step"].item() == 4


def _drop_gradient(lists: Lists, numbers: dict[str, Any]) -> None:
    del lists.grads[0]


def _half_moment(lists: Lists, numbers: dict[str, Any]) -> None:
    lists.exp_avgs[0] = lists.exp_avgs[0].bfloat16()


def _double_gradients(lists: Lists, numbers: dict[str, Any]) -> None:
    lists.grads[:] = [grad.double() for grad in lists.grads]


def _long_average(lists: Lists, numbers: dict[str, Any]) -> None:
    lists.emas[1] = torch.zeros(99)


def _single_rate(lists: Lists, numbers: dict[str, Any]) -> None:
    numbers["lr"] = numbers["lr"].float()


def _vector_flag(lists: Lists, numbers: dict[str, Any]) -> None:
    numbers["skip"] = numbers["skip"][None]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_gradient, "expected lists of equal length, got 6 parameters, 5 gradients"),
        (_half_moment, "got bfloat16, float32 with gradients float32"),
        (_double_gradients, "got float32 with gradients float64"),
        (_long_average, r"expected the average of parameter 1 to have its shape \(3, 5\), got \(99,\)"),
        (_single_rate, "expected step, lr, .* as 0-dim float64 tensors .* float32"),
        (_vector_flag, r"skip as a 0-dim bool tensor, got .* bool \[1\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(spoil: Any, message: str) -> None:
    lists, numbers = make(SMALL, torch.device("cpu")), scalars(torch.device("cpu"))
    spoil(lists, numbers)
    before = [tensor.clone() for tensor in lists.all()]
    with pytest.raises(FastganError, match=message) as error:
        call(lists, numbers)
    assert "\n" not in str(error.value)
    assert all(map(torch.equal, lists.all(), before))


@pytest.mark.gpu
def test_tensors_of_two_devices_are_refused() -> None:
    lists, numbers = make(SMALL, torch.device("cuda", 0)), scalars(torch.device("cpu"))
    numbers["step"] = numbers["step"].cuda()
    with pytest.raises(FastganError, match="expected all tensors on one device, got cpu, cuda:0"):
        call(lists, numbers)
