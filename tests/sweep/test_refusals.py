"""What the sweep cannot do is refused by operation and place; what is wrong is one clear line; `.grad` is untouched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sweep.compare import (
    LOSSES,
    assert_exact,
    assert_exact_or_refused,
    assert_gradients,
    images,
    refusal,
    run,
    small,
    spread,
)
from sweep.rules import Op, plain, weight
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastgan.errors import FastganError
from fastgan.penalty import UnsupportedCritic, critic_backward

REAL, FAKE = images(4, 1), images(4, 2)
HINGE = LOSSES["hinge"]


class Block(nn.Module):
    """Convolution, activation."""

    def __init__(self, before: int, width: int, act: nn.Module, stride: int = 2) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(before, width, 3, stride, 1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Deep(nn.Module):
    """[N, 3, 8, 8] -> [N]: the activation under test is that of the first of three blocks: most work is behind it."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Block(3, 4, act), Block(4, 8, nn.LeakyReLU(0.2), stride=1), Block(8, 8, nn.ReLU(), stride=2)
        )
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x).flatten(1)).flatten()


class Attention(nn.Module):
    """Self-attention over pixels."""

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__()
        self.qkv, self.by_hand = nn.Linear(4, 12), by_hand

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, 2)
        y = torch.softmax(q @ k.mT / 2, 2) @ v if self.by_hand else F.scaled_dot_product_attention(q, k, v)
        return x + y.mT.view_as(x)


class Double(torch.autograd.Function):
    """2 x with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gelu": (nn.GELU, "aten.gelu at .*blocks.0.act: not piecewise linear"),
    "silu": (nn.SiLU, "aten.silu at .*blocks.0.act: not piecewise linear"),
    "softplus": (nn.Softplus, "aten.softplus at .*blocks.0.act: not piecewise linear"),
    "elu": (nn.ELU, "aten.elu at .*blocks.0.act: not piecewise linear"),
    "mish": (nn.Mish, "aten.mish at .*blocks.0.act: not piecewise linear"),
    "tanh": (nn.Tanh, "aten.tanh at .*blocks.0.act: not piecewise linear"),
    "sigmoid": (nn.Sigmoid, "aten.sigmoid at .*blocks.0.act: not piecewise linear"),
    "group norm": (lambda: nn.GroupNorm(2, 4), "group_norm at .*blocks.0.act"),
    "layer norm": (lambda: nn.LayerNorm([4, 4, 4]), "layer_norm at .*blocks.0.act"),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), "norm.* at .*blocks.0.act"),
    "batch norm": (lambda: nn.BatchNorm2d(4), "batch.?norm.* at .*blocks.0.act"),
    "attention": (lambda: Attention(by_hand=False), "(attention|softmax|bmm).* at .*blocks.0.act"),
    "softmax": (lambda: Attention(by_hand=True), "(softmax|bmm).* at .*blocks.0.act"),
    "lp pool": (lambda: nn.LPPool2d(2, 1), "pow.* at .*blocks.0.act"),
    "logsumexp": (plain(lambda x: x + x.logsumexp(1, keepdim=True)), "(exp|log).* at .*blocks.0.act"),
    "square": (plain(torch.square), "(square|pow|mul).* at .*blocks.0.act"),
    "pixel norm": (plain(lambda x: x / x.norm(dim=1, keepdim=True)), "(norm|div).* at .*blocks.0.act"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_place(name: str):
    make, message = REFUSED[name]
    critic = spread(Deep(make()))
    buffers = {name: b.clone() for name, b in critic.named_buffers()}
    for options in ({"r1": 1.0}, {"r1": 0.0, "r2": 1.0}, {"r1": 1.0, "r2": 1.0}, {"r1": 0.0, "wgan_gp": 1.0}):
        why = refusal(critic, REAL, FAKE, **options)
        assert why is not None, options
        assert re.search(message, why, re.IGNORECASE), why
        assert 'method="autograd"' in why
        assert "\n" not in why
        assert all(p.grad is None for p in critic.parameters())
        for each, buffer in critic.named_buffers():
            assert torch.equal(buffer, buffers[each]), each


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if i % 3 else ()) for i, n in enumerate(REFUSED)]
)
def test_auto_says_once_that_it_uses_autograd(name: str):
    critic, twin = (spread(Deep(REFUSED[name][0]())) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(3):
            given = run(critic, REAL, FAKE, HINGE, seed=seed, method="auto", r1=1.0, r2=0.5)
    wanted = [run(twin, REAL, FAKE, HINGE, seed=seed, method="autograd", r1=1.0, r2=0.5) for seed in range(3)][-1]
    told = [w for w in caught if w.category is RuntimeWarning]
    assert len(told) == 1
    assert "autograd" in str(told[0].message)
    assert re.search(REFUSED[name][1], str(told[0].message), re.IGNORECASE)
    assert told[0].filename == __file__.replace("test_refusals", "compare")  # where critic_backward is called
    assert given.result.method == "autograd"
    assert_gradients(wanted.gradients, given.gradients, 1e-14)
    for each, buffer in twin.named_buffers():
        torch.testing.assert_close(given.buffers[each], buffer, rtol=1e-14, atol=0)


def test_auto_warns_for_each_critic():
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="gelu"):
            run(spread(Deep(nn.GELU())), REAL, FAKE, HINGE, method="auto", r1=1.0)


def test_auto_without_penalties_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(spread(Deep(nn.GELU())), REAL, FAKE, HINGE, method="auto")
        run(spread(Deep(nn.GELU())), REAL, FAKE, HINGE, method="auto", r1=0.0)


def test_batch_norm_in_eval_mode_is_affine():
    def make() -> nn.Module:
        critic = spread(Deep(nn.BatchNorm2d(4)))
        norm = critic.blocks[0].act
        norm.running_mean.copy_(torch.linspace(-1, 1, 4))
        norm.running_var.copy_(torch.linspace(0.2, 3, 4))
        return critic.eval()

    assert_exact(make, REAL, FAKE, r1=1.0, r2=0.5)
    without = lambda: spread(Deep(nn.BatchNorm2d(4, affine=False))).eval()  # noqa: E731
    assert_exact(without, REAL, FAKE, r1=1.0)


def with_backward_hook() -> nn.Module:
    critic = small()
    critic[3].register_full_backward_hook(lambda module, grad_input, grad_output: (2 * grad_input[0],))
    return critic


def with_backward_pre_hook() -> nn.Module:
    critic = small()
    critic[3].register_full_backward_pre_hook(lambda module, grad_output: (2 * grad_output[0],))
    return critic


def with_hook_on_activations() -> nn.Module:
    """Scales the gradient on its way, in every order."""

    def body(_: Op, x: Tensor) -> Tensor:
        y = x * 1.5
        if y.requires_grad:
            y.register_hook(lambda g: 0.5 * g)
        return y

    return spread(Deep(Op(body)))


def with_custom_function() -> nn.Module:
    return spread(Deep(Op(lambda _, x: Double.apply(x))))


def with_reversed_gradient() -> nn.Module:
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return -0.5 * grad

    return spread(Deep(Op(lambda _, x: Reverse.apply(x))))


def branching() -> nn.Module:
    return spread(Deep(Op(lambda _, x: 2 * x if x.mean() > 0 else x)))


def reading() -> nn.Module:
    return spread(Deep(Op(lambda _, x: x * float(x.abs().max()))))


def through_numpy() -> nn.Module:
    return spread(Deep(Op(lambda _, x: x + torch.from_numpy(x.detach().numpy().clip(0)))))


ODD: dict[str, Callable[[], nn.Module]] = {
    "backward hook": with_backward_hook,
    "backward pre-hook": with_backward_pre_hook,
    "hook on activations": with_hook_on_activations,
    "custom function": with_custom_function,
    "reversed gradient": with_reversed_gradient,
    "branch on values": branching,
    "value read": reading,
    "numpy": through_numpy,
    "checkpoint": lambda: spread(Deep(Op(lambda m, x: checkpoint(m.c, x, use_reentrant=False), c=nn.Conv2d(4, 4, 1)))),
    "data of a weight": lambda: spread(Deep(Op(lambda m, x: m.c(x) * m.c.weight.data.mean(), c=nn.Conv2d(4, 4, 1)))),
    "detached weight": lambda: spread(Deep(Op(lambda m, x: F.conv2d(x, m.w.detach()) + x, w=weight(4, 4, 1, 1)))),
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "compiled layer": lambda: spread(Deep(torch.compile(nn.Conv2d(4, 4, 1), backend="eager"))),
    "autocast within": lambda: spread(Deep(Op(_without_autocast))),
    "double backward in forward": lambda: spread(Deep(Op(_gradient_features, w=weight(4, 4, 1, 1)))),
    "features kept": lambda: spread(Deep(Op(_kept))),
    "scripted": lambda: spread(Deep(torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())))),
    "vmap": lambda: spread(Deep(Op(lambda m, x: torch.vmap(lambda one: F.relu(m.w @ one))(x), w=weight(4, 4)))),
}  # fmt: skip


def _without_autocast(_: Op, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.relu(x - 0.1)


def _gradient_features(m: Op, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.relu(F.conv2d(y, m.w)).sum(), y, create_graph=True)
    return x + g


def _kept(m: Op, x: Tensor) -> Tensor:
    m.features = x.detach()
    return F.relu(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if i % 2 else ()) for i, n in enumerate(ODD)])
def test_odd_critics_are_exact_or_refused(name: str):
    """Those with an own opinion on gradients must be refused where it cannot be seen; "auto" equals autograd."""
    assert_exact_or_refused(ODD[name], REAL, FAKE, r1=1.0, r2=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_exact(ODD[name], REAL, FAKE, HINGE, method="auto", expect=None, r1=1.0)


@pytest.mark.parametrize("name", ["backward hook", "backward pre-hook", "custom function", "branch on values"])
def test_these_are_refused(name: str):
    assert refusal(ODD[name](), REAL, FAKE)


_library = torch.library.Library("fastgan_tests", "FRAGMENT")
_library.define("centred(Tensor x) -> Tensor")
_library.impl("centred", lambda x: x - x.mean(0), "CompositeExplicitAutograd")
_library.impl("centred", lambda x: torch.empty_like(x), "Meta")
torch.library.register_autograd(
    "fastgan_tests::centred", lambda ctx, g: torch.ops.fastgan_tests.centred(g), lib=_library
)
ORDER = torch.tensor([2, 0, 3, 1])

COUPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "hidden in an operation": lambda x: torch.ops.fastgan_tests.centred(x),
    "rolled": lambda x: x + 0.5 * x.roll(1, 0),
    "flipped": lambda x: x + x.flip(0),
    "permuted": lambda x: x + 2 * x[ORDER],
    "centred": lambda x: x - x.mean(0),
    "centred, detached": lambda x: x - x.mean(0).detach(),
    "largest of the batch": lambda x: x - x.amax(0, keepdim=True),
    "sum over everything": lambda x: x + x.mean(),
    "a cumulative sum": lambda x: x.cumsum(0),
    "sorted": lambda x: x + x.sort(0).values,
    "the first sample": lambda x: x - x[:1],
    "the first sample, detached": lambda x: x - x[:1].detach(),
    "batch and channels swapped": lambda x: x + x.transpose(0, 1).contiguous().view_as(x),
    "mixed by a view": lambda x: x + x.permute(1, 0, 2, 3).reshape(x.shape),
    "pairs": lambda x: x + x.view(2, -1, *x.shape[1:]).flip(0).reshape(x.shape),
    "a matrix over the batch": lambda x: x + torch.einsum("mn,nchw->mchw", x.new_ones(len(x), len(x)), x),
    "softmax over the batch": lambda x: x * x.softmax(0),
    "batch size as a number": lambda x: x * (x.shape[0] / 4),
    "scaled by the batch's norm": lambda x: x / (x.norm().detach() + 1),
}  # fmt: skip


class Coupling(nn.Module):
    """A function of the whole batch as a layer."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("last", [False, pytest.param(True, marks=pytest.mark.long)], ids=["early", "late"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if i % 2 else ()) for i, n in enumerate(COUPLED)]
)
def test_samples_that_see_each_other_are_exact_or_refused(name: str, last: bool):
    """4 samples, 4 channels: nothing may be read off sizes. Real and fake are two batches, also where N differs."""

    def make() -> nn.Module:
        layers = [Block(3, 4, nn.LeakyReLU(0.2)), Coupling(COUPLED[name]), Block(4, 4, nn.ReLU())]
        layers = layers[::2] + layers[1:2] if last else layers
        return spread(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 1)))

    if last:
        assert_exact_or_refused(make, REAL, FAKE, r1=1.0)
    else:
        assert_exact_or_refused(make, REAL, FAKE, r1=1.0, r2=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_exact(make, REAL, FAKE, HINGE, method="auto", expect=None, calls=1, r1=1.0, r2=1.0)


def test_bad_input_is_one_clear_line_and_leaves_gradients_alone():
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "negative": ({"r1": -1.0}, "r1 must be a finite number of 0 or more, got -1.0"),
        "negative wgan_gp": ({"wgan_gp": -1.0}, "wgan_gp must be a finite number of 0 or more, got -1.0"),
        "shapes": ({"fake": images(4, 2, (3, 8, 6))}, "real and fake differ in shape"),
        "channels": ({"real": images(4, 1, (2, 8, 8))}, "real and fake differ in shape"),
        "device": ({"critic": small().to("meta")}, "critic is on meta, real on cpu"),
        "frozen": ({"critic": small().requires_grad_(False)}, "no trainable parameter"),
        "unequal": ({"fake": images(3, 2), "wgan_gp": 1.0}, "got 4 real and 3 fake"),
        "loss per sample": ({"loss": lambda r, f: r - f}, "loss must return a 0-dim tensor"),
        "one logit": ({"critic": _returning(lambda x: x.mean())}, "floating-point logits [4], [4, 1] or [4, ...]"),
        "too few": ({"critic": _returning(lambda x: x[:3])}, "for 4 samples, got torch.float64 [3, 1]"),
        "several outputs": ({"critic": _returning(lambda x: (x, x))}, "one tensor of logits, got tuple"),
        "integers": ({"critic": _returning(lambda x: x.long())}, ""),
        "detached": ({"critic": _returning(torch.detach)}, ""),
        "no use of x": ({"critic": _returning(lambda x: x * 0 + 1)}, ""),
    }
    for name, (changes, message) in cases.items():
        arguments = {"critic": small(), "real": REAL, "fake": FAKE, "loss": HINGE, "r1": 1.0, "r2": 1.0, **changes}
        if name == "no use of x":
            critic_backward(**arguments, method="sweep")
            continue
        with pytest.raises(FastganError) as error:
            critic_backward(**arguments, method="sweep")
        assert message in str(error.value), name
        assert "\n" not in str(error.value), name
        assert all(p.grad is None for p in arguments["critic"].parameters()), name


def _returning(output: Callable[[Tensor], Any]) -> nn.Module:
    critic = small()
    inner = critic.forward
    critic.forward = lambda x: output(inner(x))  # type: ignore[method-assign]
    return critic


def test_unsupported_critic_is_the_error_of_both():
    with pytest.raises(UnsupportedCritic):
        run(spread(Deep(nn.GELU())), REAL, FAKE, HINGE, method="sweep", r1=1.0)
    assert issubclass(UnsupportedCritic, FastganError)
