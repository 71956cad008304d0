"""The fused layers against PyTorch's own, one after the other: modes, types, errors, derivatives, memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn.compare import assert_close, error, fused_calls, gradients
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.nn import BatchNormAct2d, BiasAct, ConvTransposeBatchNormAct1d, ConvTransposeBatchNormAct2d, fuse

ACTS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
NORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "not affine": {"affine": False},
    "not tracked": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
    "large eps": {"eps": 0.1, "momentum": 0.3},
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "k4 s2 p1": {},
    "output padding": {"kernel_size": 3, "output_padding": 1},
    "groups": {"groups": 2, "bias": True},
    "dilation": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)},
    "k1 s1": {"kernel_size": 1, "stride": 1, "padding": 0},
}


def block(
    dimensions: int = 2,
    act: str = "relu",
    norm: dict[str, Any] | None = None,
    conv: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[nn.Module, nn.Module]:
    """PyTorch's layers and ours, with the same state."""
    conv, norm = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False, **(conv or {})}, norm or {}
    torch.manual_seed(0)
    kind = ConvTransposeBatchNormAct2d if dimensions == 2 else ConvTransposeBatchNormAct1d
    ours = kind(4, 6, act=act, **conv, **norm).to(dtype)
    made_by = (nn.ConvTranspose2d, nn.BatchNorm2d) if dimensions == 2 else (nn.ConvTranspose1d, nn.BatchNorm1d)
    layers = {"conv": made_by[0](4, 6, **conv), "norm": made_by[1](6, **norm), "act": ACTS[act]()}
    plain = nn.Sequential()
    for name, layer in layers.items():
        plain.add_module(name, layer)
    plain.to(dtype).load_state_dict(ours.state_dict())
    return plain, ours


def batch(dimensions: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (3, 4, 5, 7) if dimensions == 2 else (3, 4, 9)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


def assert_same(plain: nn.Module, ours: nn.Module, x: Tensor, bound: float = 1e-12) -> None:
    """In training, in evaluation, and in evaluation without gradients."""
    for training in (True, True, False):
        plain.train(training)
        ours.train(training)
        upstream = torch.randn_like(plain(x))
        ours(x)
        got = gradients(ours, x.clone().requires_grad_(), upstream)
        assert_close(got, gradients(plain, x.clone().requires_grad_(), upstream), bound)
        with torch.no_grad():
            assert error(ours(x), plain(x)) < bound
        assert_close(ours.buffers(), plain.buffers(), bound)


@pytest.mark.parametrize("act", ACTS)
def test_activations(act: str, implementation: str):
    assert_same(*block(act=act), batch())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_variants_of_batch_norm(norm: str, dimensions: int, implementation: str):
    assert_same(*block(dimensions, norm=NORMS[norm]), batch(dimensions))


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_variants_of_the_convolution(conv: str, implementation: str):
    assert_same(*block(conv=CONVOLUTIONS[conv]), batch())


def test_float32_and_layouts(implementation: str):
    for x in (batch().float(), batch().float().contiguous(memory_format=torch.channels_last)):
        plain, ours = block(act="leaky_relu", dtype=torch.float32)
        expected, got = plain(x), ours(x)
        assert got.stride() == expected.stride()
        assert error(got, expected) < 1e-5
    plain, ours = block()
    assert_same(plain, ours, batch().transpose(2, 3)[:, :, ::2])


def test_running_statistics_count_batches():
    _, ours = block(norm={"momentum": None})
    for _ in range(3):
        ours(batch())
    assert ours.norm.num_batches_tracked.item() == 3
    assert error(ours.norm.running_mean, ours.conv(batch()).mean((0, 2, 3))) < 1e-12


@pytest.mark.parametrize("frozen", ["conv.weight", "norm.weight", "norm.bias", "all"])
def test_frozen_parameters(frozen: str, implementation: str):
    plain, ours = block()
    for model in (plain, ours):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name != frozen and frozen != "all")
    assert_same(plain, ours, batch())


def test_frozen_norm_in_training(implementation: str):
    plain, ours = block(act="silu")
    x = batch()
    for model in (plain, ours):
        model(x)
        model.norm.eval()
    upstream = torch.randn_like(plain(x))
    assert_close(
        gradients(ours, x.clone().requires_grad_(), upstream), gradients(plain, x.clone().requires_grad_(), upstream)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", ["leaky_relu", "tanh"])
def test_second_derivatives(act: str, training: bool, native: None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Tanh(), ConvTransposeBatchNormAct2d(2, 3, act=act), nn.ConvTranspose2d(3, 1, 4, 2, 1), nn.Sigmoid()
    ).double()
    fuse(model).train(training)
    names = [name for name, _ in model.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, state, (x,))

    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    with fused_calls() as calls:
        function(x, *model.parameters())
    assert calls.count("conv_transpose_bn_act") == 2
    assert torch.autograd.gradcheck(function, (x, *model.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *model.parameters()), fast_mode=True)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_errs_no_more_than_eager(half: torch.dtype, training: bool, native: None):
    torch.manual_seed(0)
    exact = nn.Sequential(
        nn.ConvTranspose2d(16, 24, 4, 2, 1),
        nn.BatchNorm2d(24),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(24, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )
    x = torch.randn(8, 16, 6, 6)
    exact(x)
    plain = copy.deepcopy(exact)
    ours = fuse(copy.deepcopy(exact))
    exact.double()
    errors, types = [], []
    for model in (plain, ours):
        model.train(training)
        with torch.autocast("cpu", half), fused_calls() as calls:
            out = model(x)
        types.append(out.dtype)
        errors.append(error(out, exact.train(training)(x.double())))
        out.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        assert all(b.dtype != half for b in model.buffers())
    assert calls
    assert types[0] == types[1] == half
    assert errors[1] < 2 * errors[0]


def test_other_ways_to_differentiate(native: None):
    """Forward mode and torch.func know PyTorch's operations only."""
    plain, ours = block()
    x, tangent = batch(), torch.randn(3, 4, 5, 7, dtype=torch.float64)
    plain.eval()
    ours.eval()
    assert_close(torch.func.jvp(ours, (x,), (tangent,)), torch.func.jvp(plain, (x,), (tangent,)))
    by_sample = [torch.vmap(lambda one, m=m: m(one[None])[0])(x) for m in (ours, plain)]
    assert error(*by_sample) < 1e-12
    assert error(torch.jit.trace(ours, x)(x), plain(x)) < 1e-12


# ---- memory


def test_normalised_tensors_are_not_kept_between_blocks(native: None):
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)]
    plain = nn.Sequential(*layers)
    ours = fuse(copy.deepcopy(plain))
    x = torch.randn(2, 8, 8, 8)

    def kept(model: nn.Module) -> int:
        """Bytes of the activations that are saved for backward."""
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            if t.dim() == 4 and t.shape[0] == 2:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
        del out
        return sum(storages.values())

    raw = sum(4 * 2 * 8 * size * size for size in (8, 16, 32, 64))
    assert kept(ours) == raw
    assert kept(ours) <= 0.75 * kept(plain)


# ---- single layers


def test_initial_values_are_those_of_pytorch():
    torch.manual_seed(0)
    ours = ConvTransposeBatchNormAct2d(5, 7, bias=True)
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(5, 7, 4, 2, 1)
    assert torch.equal(ours.conv.weight, conv.weight)
    assert torch.equal(ours.conv.bias, conv.bias)
    assert list(ours.state_dict()) == [
        *(f"conv.{key}" for key in conv.state_dict()),
        *(f"norm.{key}" for key in nn.BatchNorm2d(7).state_dict()),
    ]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ["none", "leaky_relu", "gelu"])
def test_batch_norm_act(norm: str, act: str, implementation: str):
    torch.manual_seed(0)
    ours = BatchNormAct2d(4, act=act, **NORMS[norm]).double()
    plain = nn.Sequential(nn.BatchNorm2d(4, **NORMS[norm]), ACTS[act]()).double()
    plain[0].load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(plain[0].state_dict())
    assert_same(plain, ours, batch())


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_bias_act(act: str, shape: tuple[int, ...], implementation: str):
    ours = BiasAct(4, act=act).double()
    nn.init.normal_(ours.bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = ACTS[act]()(x + ours.bias.view(-1, *[1] * (x.dim() - 2)))
    upstream = torch.randn_like(expected)
    assert error(ours(x), expected) < 1e-12
    assert_close(gradients(ours, x, upstream), torch.autograd.grad(expected, [x, ours.bias], upstream))


def test_our_modules_join_in_a_chain(native: None):
    torch.manual_seed(0)
    model = nn.Sequential(
        ConvTransposeBatchNormAct2d(3, 4), ConvTransposeBatchNormAct2d(4, 5, act="silu"), nn.ConvTranspose2d(5, 2, 3)
    ).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    other = fuse(copy.deepcopy(model))
    with fused_calls() as names:
        assert error(other(x), model(x)) < 1e-12
    joined = names[: len(names) - 4]
    assert "batch_norm_act" not in joined, "what the first two give is applied by the convolution behind them"


# ---- what is refused


def wrong_channels() -> None:
    ConvTransposeBatchNormAct2d(4, 6)(torch.randn(2, 5, 4, 4))


def wrong_channels_of_a_norm() -> None:
    BatchNormAct2d(4)(torch.randn(2, 5, 4, 4))


def integers() -> None:
    ConvTransposeBatchNormAct2d(4, 6)(torch.ones(2, 4, 4, 4, dtype=torch.int64))


def integers_in_a_norm() -> None:
    BatchNormAct2d(4)(torch.ones(2, 4, 4, 4, dtype=torch.int64))


def devices() -> None:
    ConvTransposeBatchNormAct2d(4, 6, device="meta")(torch.randn(2, 4, 4, 4))


def devices_of_a_norm() -> None:
    BatchNormAct2d(4, device="meta")(torch.randn(2, 4, 4, 4))


def types() -> None:
    ConvTransposeBatchNormAct2d(4, 6)(torch.randn(2, 4, 4, 4, dtype=torch.float64))


def unknown_activation() -> None:
    ConvTransposeBatchNormAct2d(4, 6, act="leaky_rely")


def channels_in_a_fused_model() -> None:
    fuse(nn.Sequential(nn.Identity(), nn.ConvTranspose2d(4, 6, 4), nn.ReLU()))(torch.randn(2, 5, 4, 4))


def channels_inside_a_fused_model() -> None:
    fuse(nn.Sequential(nn.ConvTranspose2d(5, 6, 4), nn.BatchNorm2d(7), nn.ReLU()))(torch.randn(2, 5, 4, 4))


def no_module() -> None:
    fuse([nn.ReLU()])  # type: ignore[type-var]


REFUSED: dict[Callable[[], None], list[str]] = {
    wrong_channels: ["ConvTransposeBatchNormAct2d(4, 6)", "expected 4 channels, got 5", "in_channels"],
    wrong_channels_of_a_norm: ["BatchNormAct2d(4)", "expected 4 channels, got 5", "num_features"],
    integers: ["ConvTransposeBatchNormAct2d(4, 6)", "int64", "x.float()"],
    integers_in_a_norm: ["BatchNormAct2d(4)", "int64", "x.float()"],
    devices: ["ConvTransposeBatchNormAct2d(4, 6)", "cpu", "meta", ".to()"],
    devices_of_a_norm: ["BatchNormAct2d(4)", "cpu", "meta", ".to()"],
    types: ["ConvTransposeBatchNormAct2d(4, 6)", "float32", "float64", ".to()"],
    unknown_activation: ["ConvTransposeBatchNormAct2d", "'leaky_rely'", "did you mean 'leaky_relu'?"],
    channels_in_a_fused_model: ["1 + 2", "expected 4 channels, got 5"],
    channels_inside_a_fused_model: ["0 + 1 + 2", "expected 7 channels, got 6"],
    no_module: ["torch.nn.Module", "list"],
}


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda f: f.__name__)
def test_errors_name_the_layer_and_the_fix(mistake: Callable[[], None], implementation: str):
    with pytest.raises(FastganError) as caught:
        mistake()
    for part in REFUSED[mistake]:
        assert part in str(caught.value)


def test_one_value_per_channel_in_training(implementation: str):
    x = torch.randn(1, 4, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel") as expected:
        F.batch_norm(x, None, None, training=True)
    models = [
        BatchNormAct2d(4),
        ConvTransposeBatchNormAct2d(4, 4, 1, 1, 0),
        fuse(nn.Sequential(nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())),
    ]
    for model in models:
        with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
            model(x)
        assert str(caught.value) == str(expected.value)
        assert model.eval()(x).shape == x.shape
