"""fuse() on what is rare: each of these once gave another result than the original layers, or an error."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from nn.compare import assert_close, fused_calls, twins
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.nn import BatchNormAct2d, fuse, fused


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.up, self.norm = nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor, factor: Any = 1) -> Any:
        return F.relu(self.norm(self.up(x))), type(factor).__name__


class ReadsStatistics(Block):
    def forward(self, x: Tensor, factor: Any = 1) -> Any:
        y = self.norm(self.up(x))
        mean = self.norm.running_mean.clone()
        return F.relu(y) + mean.view(1, -1, 1, 1)


class WorksInPlace(Block):
    def forward(self, x: Tensor, factor: Any = 1) -> Any:
        return self.up(F.relu_(self.before(x)))


class Registered(nn.Module):
    seen: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registered.seen[key] = cls


class Member(Registered, key="member"):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)[0]


def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 4, 5, 5, dtype=torch.float64)


def test_running_statistics_that_the_forward_reads(native: None):
    plain, other = twins(lambda: ReadsStatistics().double())
    assert_close([other(inputs())], [plain(inputs())])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_sees_what_changes_in_place(when: str, native: None):
    seen: list[Tensor] = []
    model = WorksInPlace().double()
    if when == "after":
        fuse(model)(inputs())
    model.before.register_forward_hook(lambda _, __, out: seen.append(out))
    fuse(model)(inputs())
    assert seen[0].min() == 0


def test_constants_of_other_types(native: None):
    model = fuse(Block().double())
    for factor in (1, True, 1.0, 1):
        assert model(inputs(), factor)[1] == model(inputs(), factor=factor)[1] == type(factor).__name__


def test_a_registry_of_classes():
    registered = Registered.seen["member"]
    plain, other = twins(lambda: Member().double())
    assert Registered.seen == {"member": registered}
    assert isinstance(other, Member)
    assert_close([copy.deepcopy(other)(inputs())], [plain(inputs())])


def test_nobody_counts_batches(implementation: str):
    def make() -> nn.Module:
        model = nn.Sequential(nn.ConvTranspose2d(4, 3, 4), nn.BatchNorm2d(3, momentum=None), nn.ReLU()).double()
        model[1].num_batches_tracked = None
        return model

    plain, other = twins(make)
    assert_close([other(inputs())], [plain(inputs())])
    assert_close(other.buffers(), plain.buffers())


def test_a_weight_that_is_no_parameter(implementation: str):
    model = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, bias=False), nn.ReLU()).double()
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].weight = weight
    expected = [model(inputs()), model(inputs()[:0])]
    fuse(model)
    assert_close([model(inputs()), model(inputs()[:0])], expected)


def test_gradients_in_batches(native: None):
    layers = (nn.BatchNorm2d(4), nn.Tanh(), nn.ConvTranspose2d(4, 2, 4), nn.BatchNorm2d(2), nn.Sigmoid())
    plain, other = twins(lambda: copy.deepcopy(nn.Sequential(*layers)).double())
    jacobians = [torch.autograd.functional.jacobian(m, inputs()[:, :, :2, :2], vectorize=True) for m in (plain, other)]
    assert_close([jacobians[1]], [jacobians[0]])


def test_models_do_not_share_a_limit_of_recompilations(native: None):
    class Other(Block):
        pass

    codes = [type(fuse(kind())).forward.__code__ for kind in (Block, Other)]
    assert codes[0] is not codes[1]


@pytest.mark.parametrize("act", [None, nn.ReLU])
def test_an_activation_that_is_no_name(act: Any):
    with pytest.raises(FastganError, match="BatchNormAct2d"):
        BatchNormAct2d(3, act=act)


def test_a_fused_submodule_inside_a_fused_module(native: None):
    """Each is fused for calls of its own; a new trace of the outer one follows the original of the inner."""
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Sequential(
            nn.ConvTranspose2d(4, 5, 4, 2, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.ConvTranspose2d(5, 3, 4, 2, 1)
        ),
    ).double()
    other = fuse(copy.deepcopy(plain))
    fuse(other[1])
    x, z = (torch.randn(2, channels, 4, 4, dtype=torch.float64) for channels in (3, 4))
    for mode in (True, False, True):
        plain.train(mode), other.train(mode)
        assert torch.allclose(other(x), plain(x), rtol=1e-12, atol=1e-13)
        assert torch.allclose(other[1](z), plain[1](z), rtol=1e-12, atol=1e-13)
    assert [record.fused for record in fused(other)] == [True]


@pytest.mark.parametrize(
    ("layer", "x"), [(BatchNormAct2d(4), torch.float64), (BatchNormAct2d(4).half(), torch.float32)]
)
def test_a_wrong_type_names_the_layer(layer: nn.Module, x: torch.dtype, native: None):
    with pytest.raises(FastganError, match=r"BatchNormAct2d\(4\): expected the input in the type of the weight"):
        layer(torch.randn(2, 4, 3, 3, dtype=x))


@pytest.fixture
def collected_all_the_time() -> Iterator[list[float]]:
    """A process in which the garbage collector runs at every turn and someone takes the time of it, as Hypothesis and
    monitors of memory do."""
    times: list[float] = []

    def note(phase: str, info: dict[str, int]) -> None:
        times.append(time.perf_counter())

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    yield times
    gc.set_threshold(*before)
    gc.callbacks.remove(note)


def test_collections_of_garbage_do_not_count(collected_all_the_time: list[float], native: None):
    made = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()).double()
    model = fuse(made)
    assert collected_all_the_time
    assert [record.fused for record in fused(model)] == [True]
    assert gc.isenabled()


def up(before: int, after: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]


class Autoencoder(nn.Module):
    """Its forward goes through the decoder only, and layer by layer through its head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.decoder = nn.Sequential(nn.Sequential(*up(4, 5)), *up(5, 4))
        self.head = nn.Sequential(*up(4, 3), nn.Conv2d(3, 3, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.decoder(z)
        for layer in self.head:
            x = layer(x)
        return x


@pytest.mark.parametrize("part", ["", "encoder", "decoder", "decoder.0", "head"])
def test_parts_that_are_called_on_their_own_are_fused_too(part: str, native: None):
    plain, other = twins(lambda: Autoencoder().double())
    records = [(record.where, record.fused) for record in fused(other)]
    assert records == [
        (tuple(f"decoder.0.{i}" for i in range(3)) + tuple(f"decoder.{i}" for i in range(1, 4)) + HEAD, True),
        (("encoder.1", "encoder.2"), True),
    ]
    x = torch.randn(2, 3 if part == "encoder" else 4, 4, 4, dtype=torch.float64)
    for mode in (True, False, True):
        plain.train(mode), other.train(mode)
        with fused_calls() as names:
            got = other.get_submodule(part)(x)
        assert torch.allclose(got, plain.get_submodule(part)(x), rtol=1e-12, atol=1e-13)
        assert bool(names)
    assert_close(other.buffers(), plain.buffers())
    assert type(other.decoder).__name__ == "Sequential"
    assert isinstance(other.decoder, nn.Sequential)


HEAD = ("head.0", "head.1", "head.2")


def test_identities_between_layers(native: None):
    def make() -> nn.Module:
        first, norm, act = up(3, 4)
        return nn.Sequential(
            nn.Identity(), first, nn.Identity(), norm, nn.Identity(), nn.Identity(), act, *up(4, 3), nn.Identity()
        ).double()

    plain, other = twins(make)
    assert [record.where for record in fused(other)] == [("1", "3", "6", "7", "8", "9")]
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.allclose(other(x), plain(x), rtol=1e-12, atol=1e-13)
    seen: list[Tensor] = []
    other[2].register_forward_hook(lambda module, args, out: seen.append(out))
    assert torch.allclose(other(x), plain(x), rtol=1e-12, atol=1e-13)
    assert len(seen) == 1, "a hook on one is called"


def test_in_place_behind_an_identity(native: None):
    """What it changes may be the input of the model."""
    plain, other = twins(lambda: nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), *up(3, 4)).double())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    one, two = x.clone(), x.clone()
    assert torch.allclose(other(one), plain(two), rtol=1e-12, atol=1e-13)
    assert torch.equal(one, two)
    assert torch.equal(one, x.relu())
