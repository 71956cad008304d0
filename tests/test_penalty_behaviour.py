"""Penalties beside what else a step does: gradients that are there, hooks, types, frozen layers, and bad input."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_reads import NoHostReads
from penalized import F64, Linear, assert_gradients, conv_critic, expected, gradients, images, nothing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import losses
from fastgan.errors import FastganError
from fastgan.penalty import UnsupportedCritic, critic_backward


def test_adds_to_gradients_that_are_there_and_leaves_frozen_parameters_alone():
    critic, real, fake = conv_critic(), images(4, 1), images(4, 2)
    critic.conv2.requires_grad_(False)
    wanted = expected(critic, (real,), (fake,), losses.HINGE.critic, r1=1.0, r2=1.0)
    before = torch.randn_like(critic.conv1.weight)
    critic.conv1.weight.grad = before.clone()
    kept = critic.conv1.weight.grad
    critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0, r2=1.0)
    assert critic.conv1.weight.grad is kept
    torch.testing.assert_close(kept, before + wanted["conv1.weight"])
    torch.testing.assert_close(critic.out.weight.grad, wanted["out.weight"])
    assert critic.conv2.weight.grad is None
    assert not critic.conv2.weight.requires_grad


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x))).sum(1)

    critic, real, fake = Tied().double(), images(4, 1, (6,)), images(4, 2, (6,))
    critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0)
    untied = copy.deepcopy(critic)
    untied.second.weight = nn.Parameter(critic.first.weight.detach().clone())
    wanted = expected(untied, (real,), (fake,), losses.HINGE.critic, r1=1.0)
    torch.testing.assert_close(critic.first.weight.grad, wanted["first.weight"] + wanted["second.weight"])


def test_hooks_run_once_with_the_whole_gradient():
    critic, real, fake = conv_critic(), images(4, 1), images(4, 2)
    wanted = expected(critic, (real,), (fake,), losses.HINGE.critic, r1=1.0, r2=1.0)
    seen: list[Tensor] = []
    critic.out.weight.register_hook(lambda g: seen.append(g.clone()))
    critic.out.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0, r2=1.0)
    assert len(seen) == 2
    for gradient in seen:
        torch.testing.assert_close(gradient, wanted["out.weight"])


def test_nothing_else_gets_a_gradient():
    generator = nn.ConvTranspose2d(4, 2, 8).double()
    real = images(3, 1).requires_grad_()
    latents = torch.randn(3, 4, 1, 1, dtype=F64, requires_grad=True)
    fake = generator(latents)
    critic = conv_critic()
    result = critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0, r2=1.0, wgan_gp=1.0)
    assert real.grad is None
    assert real.requires_grad
    assert latents.grad is None
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    fields = [getattr(result, f.name) for f in dataclasses.fields(result)]
    assert not any(value.requires_grad for value in fields if isinstance(value, Tensor))
    fake.sum().backward()  # the generator's graph is still there


def test_leaves_that_are_not_the_modules_parameters_get_nothing():
    critic, outside = conv_critic(), torch.ones((), dtype=F64, requires_grad=True)
    critic.register_forward_hook(lambda module, inputs, logits: logits * outside)
    critic_backward(critic, images(3, 1), images(3, 2), losses.HINGE.critic, r1=1.0)
    assert outside.grad is None
    assert critic.out.weight.grad is not None


def test_first_layer_has_an_input_gradient_only_where_a_penalty_needs_it():
    critic, counter = conv_critic(), InputGradients((4, 2, 3, 3))
    with counter:
        critic_backward(critic, images(3, 1), images(3, 2), losses.HINGE.critic)
    assert counter.count == 0
    with counter:
        critic_backward(critic, images(3, 1), images(3, 2), losses.HINGE.critic, r1=1.0, method="autograd")
    assert counter.count == 1


class InputGradients(TorchDispatchMode):
    """Counts the input gradients of convolutions with weights of one shape."""

    def __init__(self, weight: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.count = weight, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket == torch.ops.aten.convolution_backward and args[2].shape == self.weight:
            self.count += args[-1][0]
        return func(*args, **(kwargs or {}))


def test_a_tensor_that_the_critic_does_not_use_has_gradient_zero():
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = Linear(torch.tensor([3.0, 4.0], dtype=F64))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.critic(x)

    pair = images(3, 1, (2,)), images(3, 2, (5,))
    assert critic_backward(First(), pair, pair, nothing, r1=1.0).r1.item() == pytest.approx(25)


def test_a_plain_callable_reaches_its_leaves():
    critic, plain, real, fake = conv_critic(), conv_critic(), images(3, 1), images(3, 2)
    critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0)
    critic_backward(lambda x: plain(x), real, fake, losses.HINGE.critic, r1=1.0)
    assert_gradients(critic, gradients(plain))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_grad_mode_of_the_caller_does_not_matter(mode: Callable[[], Any]):
    critic, real, fake = conv_critic(), images(3, 1), images(3, 2)
    with mode():
        critic_backward(critic, real, fake, losses.HINGE.critic, r1=1.0)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert_gradients(critic, expected(critic, (real,), (fake,), losses.HINGE.critic, r1=1.0))


def test_work_is_done_only_where_asked():
    """Which inputs require grad in the critic's forward, pass by pass; two passes, a third for WGAN-GP."""
    critic, real, fake = conv_critic(), images(3, 1), images(3, 2)
    seen: list[bool] = []
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    for options, wanted in (
        ({}, [False, False]),
        ({"r1": 1.0}, [True, False]),
        ({"r2": 1.0}, [False, True]),
        ({"wgan_gp": 1.0}, [False, False, True]),
        ({"r1": torch.zeros(())}, [True, False]),
    ):
        seen.clear()
        critic_backward(critic, real, fake, losses.HINGE.critic, **options)
        assert seen == wanted


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_tensor_coefficients_equal_floats(dtype: torch.dtype):
    real, fake, epsilon = (x.to(dtype) for x in (images(3, 1), images(3, 2), torch.rand(3, dtype=F64)))
    floats = {"r1": 0.1, "r2": 0.3, "wgan_gp": 7.7}
    by_float, by_tensor = (conv_critic().to(dtype) for _ in range(2))
    critic_backward(by_float, real, fake, losses.HINGE.critic, epsilon=epsilon, **floats)
    tensors = {name: torch.tensor(value, dtype=F64, requires_grad=True) for name, value in floats.items()}
    critic_backward(lambda x: by_tensor(x), real, fake, losses.HINGE.critic, epsilon=epsilon, **tensors)
    for name, gradient in gradients(by_float).items():
        assert torch.equal(gradient, gradients(by_tensor)[name])
    assert all(tensor.grad is None for tensor in tensors.values())


@pytest.mark.parametrize("as_tensor", [False, True])
def test_nothing_is_read_on_the_host(as_tensor: bool):
    critic, real, fake = conv_critic(), images(3, 1), images(3, 2)
    coefficients = dict.fromkeys(("r1", "r2", "wgan_gp"), torch.tensor(2.0) if as_tensor else 2.0)
    with NoHostReads():
        critic_backward(critic, real, fake, losses.RELATIVISTIC.critic, **coefficients)
    with pytest.raises(AssertionError, match="reads on the host"), NoHostReads():
        real.sum().item()


def test_finite_flag():
    def flag(critic: nn.Module, real: Tensor, loss: Any = losses.HINGE.critic, **options: Any) -> Tensor:
        finite = critic_backward(critic, real, images(3, 2), loss, **options).finite
        assert (finite.shape, finite.dtype) == ((), torch.bool)
        return finite

    real, huge = images(3, 1), images(3, 1)
    huge[1, 0, 0, 0] = torch.inf
    critic = conv_critic()
    assert flag(critic, real, r1=1.0)
    assert not flag(critic, torch.where(huge.isinf(), torch.nan, huge))
    assert not flag(critic, real, r1=torch.tensor(torch.inf))
    assert not flag(critic, real, lambda r, f: (r - f).mean() / 0)
    assert flag(Linear(torch.ones(128, dtype=F64)), real)
    assert not flag(Linear(torch.ones(128, dtype=F64)), huge)  # a logit inf, though max(0, 1 - inf) is finite


def test_reported_values_are_not_weighted():
    real, fake, epsilon = images(3, 1), images(3, 2), torch.full((3,), 0.5, dtype=F64)
    small, large = (
        critic_backward(conv_critic(), real, fake, losses.HINGE.critic, r1=c, r2=c, wgan_gp=c, epsilon=epsilon)
        for c in (1e-3, 1e3)
    )
    for name in ("loss", "r1", "r2", "wgan_gp"):
        torch.testing.assert_close(getattr(small, name), getattr(large, name))


def test_bf16_autocast_squares_in_fp32():
    real, fake = images(4, 1).float(), images(4, 2).float()
    exact, mixed = (conv_critic().float() for _ in range(2))
    wanted = critic_backward(exact, real, fake, losses.HINGE.critic, r1=1.0, r2=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = critic_backward(mixed, real, fake.bfloat16(), losses.HINGE.critic, r1=1.0, r2=1.0)
    for name in ("loss", "r1", "r2"):
        assert getattr(result, name).dtype == torch.float32
        torch.testing.assert_close(getattr(result, name), getattr(wanted, name), rtol=0.03, atol=0)
    near, wanted_gradient = (torch.cat([g.flatten() for g in gradients(c).values()]) for c in (mixed, exact))
    assert (near - wanted_gradient).norm() < 0.05 * wanted_gradient.norm()


def test_bf16_critic_has_its_penalties_and_loss_in_fp32():
    critic, real, fake = conv_critic().bfloat16(), images(4, 1).bfloat16(), images(4, 2).bfloat16()
    seen: list[torch.dtype] = []

    def loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        seen.extend([real_logits.dtype, fake_logits.dtype])
        return (fake_logits - real_logits).mean()

    result = critic_backward(critic, real, fake, loss, r1=1.0, r2=torch.tensor(1.0, dtype=F64), wgan_gp=1.0)
    assert {t.dtype for t in (result.loss, result.r1, result.r2, result.wgan_gp)} == {torch.float32}
    assert seen == [torch.float32] * 2
    assert result.real_logits.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.bfloat16 for p in critic.parameters())


def test_batch_norm_sees_real_and_fake_apart():
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    twin = copy.deepcopy(critic)
    real, fake = images(6, 1, (3,)), images(6, 2, (3,)) + 5
    critic_backward(critic, real, fake, losses.NON_SATURATING.critic)
    losses.NON_SATURATING.critic(twin(real), twin(fake)).backward()
    assert_gradients(critic, gradients(twin))
    assert critic[1].num_batches_tracked == 2
    torch.testing.assert_close(critic[1].running_mean, twin[1].running_mean)


def test_channels_last_inputs():
    plain, strided = conv_critic(), conv_critic().to(memory_format=torch.channels_last)
    real, fake = images(3, 1), images(3, 2)
    critic_backward(plain, real, fake, losses.HINGE.critic, r1=1.0)
    real = real.contiguous(memory_format=torch.channels_last)
    critic_backward(strided, real, fake, losses.HINGE.critic, r1=1.0)
    assert_gradients(strided, gradients(plain))


class Returns(nn.Module):
    """A critic whose output is something else."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.output = nn.Linear(128, 1).double(), output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.layer(x.flatten(1)).flatten())


LABELS = torch.zeros(4, dtype=torch.int64)


BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"method": "swep"}, "method 'swep' is unknown; did you mean 'sweep'?"),
    "negative r1": ({"r1": -1.0}, "r1 must be a finite number of 0 or more, got -1.0"),
    "nan r2": ({"r2": math.nan}, "r2 must be a finite number of 0 or more, got nan"),
    "infinite wgan_gp": ({"wgan_gp": math.inf}, "wgan_gp must be a finite number"),
    "vector r1": ({"r1": torch.ones(1)}, "r1 must be a number or a 0-dim tensor, got torch.float32 [1]"),
    "sample shapes": ({"fake": images(4, 2, (2, 4, 4))}, "real and fake differ in shape: torch.float64 [4, 2, 8"),
    "number of parts": ({"real": (images(4, 1), images(4, 1))}, "real and fake differ in shape"),
    "parts of different N": ({"real": (images(4, 1), images(3, 1))}, "real must have the same N > 0"),
    "no samples": ({"real": images(0, 1)}, "real must have the same N > 0"),
    "empty tuple": ({"real": ()}, "real must be a tensor [N, ...] or a tuple of them, got nothing"),
    "no tensor": ({"fake": [images(4, 2)]}, "fake must be a tensor"),
    "0-dim": ({"real": torch.zeros(())}, "real must be a tensor"),
    "integer images": ({"real": torch.zeros(4, 2, 8, 8, dtype=torch.uint8)}, "real must be floating point"),
    "devices of samples": ({"fake": images(4, 2).to("meta")}, "on one device, got cpu and meta"),
    "critic's device": ({"critic": conv_critic().to("meta")}, "critic is on meta, real on cpu"),
    "frozen critic": ({"critic": conv_critic().requires_grad_(False)}, "no trainable parameter; call critic.req"),
    "unequal numbers": ({"fake": images(3, 2), "wgan_gp": 1.0}, "got 4 real and 3 fake"),
    "one label": ({"real_labels": LABELS}, "real_labels and fake_labels must be given both or neither"),
    "labels": ({"real_labels": LABELS[:3], "fake_labels": LABELS}, "real_labels must be [4], one per sample"),
    "epsilon": ({"epsilon": torch.rand(4, 1), "wgan_gp": 1.0}, "epsilon must be [4], one per sample, got [4, 1]"),
    "loss per sample": ({"loss": lambda r, f: r - f}, "loss must return a 0-dim tensor"),
    "loss of floats": ({"loss": lambda r, f: 1.0}, "loss must return a 0-dim tensor for (real_logits, fake_l"),
    "one logit": ({"critic": Returns(torch.mean)}, "floating-point logits [4], [4, 1] or [4, ...]"),
    "batch mismatch": ({"critic": Returns(lambda x: x[:3])}, "for 4 samples, got torch.float64 [3]"),
    "integer logits": ({"critic": Returns(lambda x: x.long())}, "critic must return floating-point logits"),
    "several outputs": ({"critic": Returns(lambda x: (x, x))}, "one tensor of logits, got tuple"),
    "detached": ({"critic": Returns(torch.detach)}, "critic returned logits without gradient"),
}


@pytest.mark.parametrize("case", BAD_INPUT, ids=str)
def test_bad_input_is_one_clear_line_and_leaves_gradients_alone(case: str):
    changes, message = BAD_INPUT[case]
    arguments = {"critic": conv_critic(), "real": images(4, 1), "fake": images(4, 2),
                 "loss": losses.HINGE.critic, **changes}  # fmt: skip
    with pytest.raises(FastganError) as error:
        critic_backward(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert all(p.grad is None for p in arguments["critic"].parameters())


def test_unsupported_critic_is_a_value_error():
    assert issubclass(UnsupportedCritic, ValueError)
    with pytest.raises(UnsupportedCritic):
        critic_backward(Returns(torch.mean), images(4, 1), images(4, 2), losses.HINGE.critic)
