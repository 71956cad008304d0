"""fuse() on whole generators: the same outputs, gradients, state and training."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from nn.compare import assert_close, error, fused_calls, gradients, twins
from nn.generators import NETWORKS, batches, make
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from fastgan.kernels._runtime import choose
from fastgan.nn import fuse, fused

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
NAMES = list(NETWORKS)
HOLDING_RUNS = [name for name, (*_, chains) in NETWORKS.items() if chains]


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    plain, other = twins(lambda: make(name)[0])
    return plain, other, make(name)[1]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_gradients_and_running_statistics(name: str, implementation: str):
    plain, other, x = pair(name)
    assert sum(record.fused for record in fused(other)) == NETWORKS[name][2]
    for training in (True, False, True):
        plain.train(training)
        other.train(training)
        expected, got = plain(x.clone()), other(x.clone())
        assert error(got, expected) < 1e-12
        assert got.stride() == expected.stride()
        upstream = torch.randn_like(expected)
        assert_close(
            gradients(other, x.clone().requires_grad_(), upstream),
            gradients(plain, x.clone().requires_grad_(), upstream),
        )
        assert_close(other.buffers(), plain.buffers())
        with torch.no_grad():
            assert error(other(x.clone()), plain(x.clone())) < 1e-12


@pytest.mark.parametrize("name", HOLDING_RUNS)
def test_our_operations_run(name: str, native: None):
    model, x = make(name)
    fuse(model)
    with fused_calls() as names:
        model(x).sum().backward()
    transposed = [m for m in model.modules() if isinstance(m, (nn.ConvTranspose1d, nn.ConvTranspose2d))]
    assert names.count("conv_transpose_bn_act") == len(transposed)
    assert names.count("conv_transpose_bn_act_backward") == len(transposed)


@pytest.mark.parametrize("name", NAMES)
def test_training_for_fifty_steps(name: str):
    plain, other, x = pair(name)
    optimisers = [torch.optim.Adam(m.parameters(), 1e-3, betas=(0.5, 0.99)) for m in (plain, other)]
    for _, batch in zip(range(50), batches(x), strict=False):
        losses = []
        for model, optimiser in zip((plain, other), optimisers, strict=True):
            optimiser.zero_grad()
            out = model(batch.clone())
            loss = (out - 0.3).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    plain.eval()
    other.eval()
    assert error(other(x.clone()), plain(x.clone())) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_load_both_ways(name: str):
    plain, x = make(name)
    changed, _ = make(name, seed=1)
    other = fuse(make(name)[0])
    assert list(other.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in other.named_modules()] == [n for n, _ in plain.named_modules()]
    file = io.BytesIO()
    torch.save(changed.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert error(other(x.clone()), changed(x.clone())) < 1e-12
    plain.load_state_dict(other.state_dict())
    plain.eval()
    other.eval()
    assert error(other(x.clone()), plain(x.clone())) < 1e-12


@pytest.mark.parametrize("name", ["DCGAN", pytest.param("HiFi-GAN, new weight_norm", marks=pytest.mark.long)])
def test_fullgraph_compilation(name: str, native: None):
    plain, other, x = pair(name)
    captured: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        captured.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for training in (True, False):
        plain.train(training)
        other.train(training)
        upstream = torch.randn_like(plain(x))
        other(x)  # both have seen the same batches
        got = gradients(compiled, x.clone().requires_grad_(), upstream)
        assert any("conv_transpose_bn_act" in target for target in captured)
        assert_close(got, gradients(plain, x.clone().requires_grad_(), upstream))
        with torch.no_grad():
            assert error(compiled(x), plain(x)) < 1e-12
        assert_close(other.buffers(), plain.buffers())
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_exported_programs_need_no_fastgan(name: str):
    if name == "HiFi-GAN":
        pytest.skip("PyTorch does not export modules with the old weight_norm")
    model, x = make(name)
    fuse(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (x,))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets
    assert not [t for t in targets if getattr(t, "namespace", "") == "fastgan"]
    assert error(program.module()(x), model(x)) < 1e-12


@pytest.mark.parametrize("name", ["DCGAN", "U-Net", "CycleGAN, BatchNorm"])
def test_copies_and_pickles_stay_fused(name: str, native: None):
    plain, other, x = pair(name)
    other(x.clone())
    plain(x.clone())
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    for again in (copy.deepcopy(other), torch.load(file, weights_only=False)):
        mine = copy.deepcopy(plain)
        with fused_calls() as names:
            got = again(x.clone())
        assert names
        assert error(got, mine(x.clone())) < 1e-12
        assert_close(again.state_dict().values(), mine.state_dict().values())
        assert fused(again) == fused(other)


@pytest.mark.parametrize("name", NAMES)
def test_without_our_kernels_every_bit_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTGAN_KERNELS", "library")
    choose.cache_clear()
    try:
        plain, other, x = pair(name)
        for training in (True, False):
            plain.train(training)
            other.train(training)
            assert torch.equal(other(x.clone()), plain(x.clone()))
            assert all(torch.equal(a, b) for a, b in zip(other.buffers(), plain.buffers(), strict=True))
    finally:
        choose.cache_clear()


def test_fusing_twice_is_fusing_once():
    model, _ = make("U-Net")
    classes = [type(m) for m in fuse(model).modules()]
    said = fused(model)
    assert fuse(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert fused(model) == said


def test_layers_that_are_called_as_functions_are_named():
    class Equalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv_transpose2d(x, self.weight * 0.1).relu()

    assert [str(record) for record in fused(Equalised())] == [
        "conv_transpose2d: left alone: called as a function, not as a module"
    ]


def test_what_is_said():
    lines = [str(record) for record in fused(fuse(make("CycleGAN")[0]))]
    assert "model.9 (InstanceNorm2d): left alone: InstanceNorm2d is not batch normalisation" in lines
    assert "model.8 (ConvTranspose2d): left alone: no batch normalisation or known activation next to it" in lines
    lines = [str(record) for record in fused(fuse(make("DCGAN")[0]))]
    assert lines == [
        "DCGAN: left alone: its forward branches on its input; looked inside",
        f"{' + '.join(f'main.{i}' for i in range(11))}: one chain of 4 blocks",
    ]
    lines = [str(record) for record in fused(make("HiFi-GAN")[0])]
    assert "leaky_relu + ups.0: left alone: fuse() was not called on this model" in lines
