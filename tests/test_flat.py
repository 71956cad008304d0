"""Buffers of a network in one tensor per type."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastgan.flat import FlatBuffers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_the_module_keeps_its_buffers_and_behaves_the_same() -> None:
    module = network()
    plain = copy.deepcopy(module)
    flat = FlatBuffers(module)
    assert sorted(str(f.dtype) for f in flat.flats) == ["torch.float32", "torch.int64"]
    assert list(module.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 1, 8, 8)
    for _ in range(2):
        one, other = module(x).square().sum(), plain(x).square().sum()
        one.backward()  # one normalisation's update must not look like a change of the other's
        other.backward()
        assert torch.equal(one, other)
    assert all(torch.equal(b, plain.get_buffer(name)) for name, b in module.named_buffers())
    assert int(flat.flats[[f.dtype for f in flat.flats].index(torch.int64)].sum()) == 4


def test_save_and_restore_on_a_flag() -> None:
    module = network()
    flat = FlatBuffers(module)
    saved, before = flat.save(), values(module)
    module(torch.randn(4, 1, 8, 8))
    after = values(module)
    flat.restore(saved, torch.tensor(False))
    assert all(torch.equal(b, after[name]) for name, b in module.named_buffers())
    module.get_buffer("1.running_mean").fill_(float("nan"))
    flat.restore(saved, torch.tensor(True))
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers())


def test_a_replaced_buffer_is_gathered() -> None:
    module = network()
    flat = FlatBuffers(module)
    module[1].running_mean = torch.tensor([1.0, 2.0, 3.0])  # type: ignore[union-attr]
    flat.gather()
    module[1].running_mean.add_(1)  # type: ignore[union-attr,operator]
    assert any((f == torch.tensor(4.0)).any() for f in flat.flats)


def test_average_and_modules_without_buffers() -> None:
    a, b = network(), network()
    flat_a, flat_b = FlatBuffers(a), FlatBuffers(b)
    b(torch.randn(4, 1, 8, 8))
    want = {
        n: x.lerp(b.get_buffer(n), 0.25) if x.is_floating_point() else b.get_buffer(n) for n, x in a.named_buffers()
    }
    flat_a.average(flat_b, torch.tensor(0.25))
    assert all(torch.allclose(x, want[n]) for n, x in a.named_buffers())
    assert FlatBuffers(nn.Linear(2, 2)).save() == []
