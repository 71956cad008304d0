"""Statistics over several processes: two of them with half a batch each are one with all of it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from nn.compare import assert_close, error
from torch import Tensor, distributed, nn

from fastgan.errors import FastganError
from fastgan.nn import BatchNormAct2d, ConvTransposeBatchNormAct2d, fuse, share_statistics

SPLIT = 2  # samples of the first process, of 5


def model(process_group: Any = None) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        ConvTransposeBatchNormAct2d(3, 4, act="leaky_relu", process_group=process_group),
        nn.Conv2d(4, 4, 3),
        BatchNormAct2d(4, act="silu", momentum=None, process_group=process_group),
    ]
    return nn.Sequential(*layers).double()


def batch() -> Tensor:
    return torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output, gradients of the input, of the parameters, and the second derivative of the input; and the buffers."""
    x = x.clone().requires_grad_()
    out = network(x)
    grads = torch.autograd.grad(out, [x, *network.parameters()], upstream, create_graph=True)
    (second,) = torch.autograd.grad(grads[0].square().sum(), x)
    return [t.detach().clone() for t in (out, grads[0], second, *grads[1:], *network.buffers())]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    upstream = torch.cos(torch.arange(5 * 4 * 6 * 6, dtype=torch.float64)).view(5, 4, 6, 6)
    network = fuse(model(distributed.group.WORLD))
    results = [step(network, batch()[mine], upstream[mine]) for _ in range(2)]
    network.eval()
    results.append([network(batch()[mine]).detach()])
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def assert_one_is_two(one: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
    """The first three are by sample; gradients of parameters add up; buffers are the same everywhere."""
    network = model()
    parameters = len(list(network.parameters()))
    by_sample, rest = slice(0, 3), slice(3, 3 + parameters)
    assert_close([torch.cat(p) for p in zip(first[by_sample], second[by_sample], strict=True)], one[by_sample], 1e-11)
    assert_close([a + b for a, b in zip(first[rest], second[rest], strict=True)], one[rest], 1e-11)
    for part in (first, second):
        assert_close(part[3 + parameters :], one[3 + parameters :], 1e-12)


def test_two_processes_are_one(tmp_path: Path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    network = model()
    upstream = torch.cos(torch.arange(5 * 4 * 6 * 6, dtype=torch.float64)).view(5, 4, 6, 6)
    for i in range(2):
        assert_one_is_two(step(network, batch(), upstream), first[i], second[i])
    network.eval()
    assert error(torch.cat([first[2][0], second[2][0]]), network(batch())) < 1e-12


class Meeting:
    """A sum over two threads, instead of a group: a function is enough."""

    def __init__(self) -> None:
        self.barrier, self.sums = threading.Barrier(2, timeout=30), [torch.empty(0), torch.empty(0)]

    def reduce(self, rank: int, vector: Tensor) -> Tensor:
        assert vector.dtype == torch.float64
        self.sums[rank] = vector.clone()
        self.barrier.wait()
        total = self.sums[0] + self.sums[1]
        self.barrier.wait()
        return total


def in_two_threads(function: Callable[[int], Any]) -> list[Any]:
    results: list[Any] = [None, None]

    def run(rank: int) -> None:
        results[rank] = function(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None for result in results)
    return results


def test_large_mean_and_small_variance():
    """Of sums of squares nothing would be left: 1e4 and 1e-2 have 12 digits between their squares."""
    x = (1e4 + 1e-2 * torch.randn(6, 4, 5, 5, dtype=torch.float64)).float()
    meeting = Meeting()

    def half(rank: int) -> Tensor:
        norm = BatchNormAct2d(4, act="none", process_group=functools.partial(meeting.reduce, rank))
        return norm(x[rank::2][: 3 - rank]).detach()

    got = in_two_threads(half)
    both = torch.cat([x[0::2], x[1::2][:2]]).double()
    exact = nn.BatchNorm2d(4).double()(both)
    assert error(torch.cat(got), exact) < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_one_value_per_process_is_enough(training: bool):
    meeting = Meeting()

    def half(rank: int) -> Tensor:
        norm = BatchNormAct2d(2, process_group=functools.partial(meeting.reduce, rank)).train(training)
        return norm(torch.full((1, 2, 1, 1), float(rank))).detach()

    low, high = in_two_threads(half)
    assert low.max() == 0
    assert high.min() > 0.9


class Mixed(nn.Module):
    """Layers of PyTorch: one that fuse() joins, one that it leaves alone, one in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.joined = nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4)
        self.alone, self.last = nn.BatchNorm2d(4, momentum=None), nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.joined(self.up(x)))
        return self.last(self.alone(y).sum((2, 3)).sin())


@pytest.mark.parametrize("fused", [True, False])
def test_plain_layers_share_their_statistics(fused: bool) -> None:
    meeting = Meeting()
    x = batch()[:4]

    networks = [fuse(Mixed().double()) if fused else Mixed().double() for _ in range(2)]

    def half(rank: int) -> list[Tensor]:
        network = networks[rank]
        keys = list(network.state_dict())
        assert share_statistics(network, functools.partial(meeting.reduce, rank)) == 3
        assert list(network.state_dict()) == keys
        assert type(network.alone).__name__ == "BatchNorm2d"
        outs = [network(x[2 * rank : 2 * rank + 2]) for _ in range(2)]
        network.eval()
        return [t.detach() for t in (*outs, network(x[2 * rank : 2 * rank + 2]), *network.buffers())]

    got = in_two_threads(half)
    network = Mixed().double()
    expected = [network(x), network(x)]
    network.eval()
    expected.append(network(x))
    assert_close([torch.cat(pair) for pair in zip(got[0][:3], got[1][:3], strict=True)], expected, 1e-12)
    for part in got:
        assert_close(part[3:], list(network.buffers()), 1e-12)


def test_a_forward_of_its_own_cannot_share() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    with pytest.raises(FastganError, match="1: Own has a forward of its own"):
        share_statistics(nn.Sequential(nn.Identity(), Own(3)), lambda vector: vector)
