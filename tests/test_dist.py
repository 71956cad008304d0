"""Ranks: who they are, what they do together, and what they say when one of them fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from ranks import environment_of, in_ranks
from torch import Tensor, nn

from fastgan import dist
from fastgan.dist import ALONE, RankLost, Ranks, StoppedElsewhere, from_environment
from fastgan.errors import FastganError
from fastgan.flat import GradientMean


def test_without_torchrun_there_is_one_rank() -> None:
    assert from_environment({}) == ALONE
    with dist.joined("cpu") as ranks:
        assert ranks == ALONE
        tensor = torch.arange(3)
        assert ranks.sum_(tensor) is tensor
        assert ranks.gather_rows(tensor) is not None
        assert ranks.gather_json({"a": [1]}) == [{"a": [1]}]
        ranks.barrier()
        with pytest.raises(FastganError, match="as it is"), ranks.together():
            raise FastganError("as it is")
    assert dist.group_mean(tensor.double().requires_grad_()).tolist() == [0, 1, 2]


def test_torchruns_variables() -> None:
    environment = environment_of(3, 8, 1234) | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert from_environment(environment) == Ranks(3, 8, 1, 2)
    for broken, said in (
        ({"RANK": "x"}, "RANK='x'"),
        ({"RANK": "8"}, "does not fit together"),
        ({"LOCAL_RANK": "2"}, "does not fit together"),
    ):
        with pytest.raises(FastganError, match=said):
            from_environment(environment | broken)
    del environment["MASTER_PORT"]
    with pytest.raises(FastganError, match="MASTER_PORT is not set"):
        from_environment(environment)
    with pytest.raises(FastganError, match="FASTGAN_RANK_TIMEOUT='soon'"):
        dist.timeout_seconds({"FASTGAN_RANK_TIMEOUT": "soon"})


def test_a_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(5, 8, 1, 2).device_name("auto") == "cuda:1"
    assert Ranks(5, 8, 1, 2).device_name("cpu") == "cpu"
    assert ALONE.device_name("auto") == "auto"
    assert ALONE.device_name("cuda:1") == "cuda:1"
    with pytest.raises(FastganError, match="'cuda:1' is one GPU, and there are 8 ranks"):
        Ranks(5, 8, 1, 2).device_name("cuda:1")
    with pytest.raises(FastganError, match="4 ranks on a machine with 2 GPUs"):
        Ranks(5, 8, 1, 4).device_name("cuda")


def test_the_fingerprint_sees_every_bit_and_place() -> None:
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    mark = dist.fingerprint(tensor)
    assert dist.fingerprint(tensor.clone()) == mark
    swapped = tensor.clone()
    swapped[2], swapped[3] = tensor[3], tensor[2]
    assert dist.fingerprint(swapped) != mark
    other = tensor.clone()
    other.view(torch.int32)[4, 4] ^= 1
    assert dist.fingerprint(other) != mark
    layout = torch.randn(2, 3, 4, 5)
    assert dist.fingerprint(layout.contiguous(memory_format=torch.channels_last)) == dist.fingerprint(layout)


def fail_if(wrong: bool, line: str) -> None:
    if wrong:
        raise FastganError(line)


def three(ranks: Ranks) -> dict[str, Tensor]:
    """Everything that ranks do together, in one go."""
    r = ranks.rank
    results = {"sum": ranks.sum_(torch.tensor([r, 1.0])), "highest": torch.tensor(ranks.highest(10 - r))}
    results["rows"] = ranks.gather_rows(torch.tensor([[i, i * i] for i in ranks.share(8)]))
    assert [len(part) for part in ranks.gather(torch.zeros(r, 2))] == [0, 1, 2]
    assert ranks.gather_json({"rank": r, "text": "é" * r}) == [{"rank": i, "text": "é" * i} for i in range(3)]
    assert ranks.from_first("yes" if r == 0 else "no") == "yes"
    assert ranks.meet(flag=r) == 2
    with ranks.together():
        pass
    for failing in ((0,), (1,), (2, 1)):
        own = r == failing[0] == 0  # the error itself is for rank 0 to raise
        with pytest.raises(FastganError if own else StoppedElsewhere) as caught, ranks.together():
            fail_if(r in failing, f"disk {r} is full")
        lines = {True: "disk 0 is full", False: "rank 1: disk 1 is full" if r == 0 else ""}
        assert str(caught.value) == lines[own]
    same = {"critic": {"weight": torch.ones(3), "bias": torch.zeros(2, dtype=torch.float64)}}
    ranks.check_same(same)
    same["critic"]["bias"][1] = r / 2
    with pytest.raises(StoppedElsewhere if r else FastganError, match="" if r else "critic: bias"):
        ranks.check_same(same)
    x = torch.tensor([1.0 + r, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(dist.group_sum(x), x), "outside of a turn it is about one rank"
    with dist.playing(ranks):
        mean = dist.group_mean(x.square())
        (first,) = torch.autograd.grad(mean.square().sum() * 3 / 3, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    return results | {"mean": mean, "first": first, "second": second}


def test_three_ranks_do_things_together(tmp_path: Path) -> None:
    results = in_ranks(3, "test_dist:three", tmp_path)
    for result in results:
        assert result["sum"].tolist() == [3, 3]
        assert result["highest"] == 10
        assert result["rows"].tolist() == [[i, i * i] for i in range(8)]
    # Every rank's objective is |mean|^2, and their sum is differentiated.
    x = torch.tensor([[1.0 + r, 2.0] for r in range(3)], dtype=torch.float64, requires_grad=True)
    mean = x.square().mean(0)
    (first,) = torch.autograd.grad(3 * mean.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    for r, result in enumerate(results):
        assert torch.allclose(result["mean"], mean, rtol=1e-14)
        assert torch.allclose(result["first"], first[r], rtol=1e-14)
        assert torch.allclose(result["second"], second[r], rtol=1e-14)


def gradients(ranks: Ranks) -> dict[str, Tensor]:
    layer = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    double, unused = nn.Parameter(torch.zeros(7, dtype=torch.float64)), nn.Parameter(torch.zeros(2))
    parameters = [*layer.parameters(), double, unused]
    mean = GradientMean(ranks)
    for round_ in range(2):  # the second one in the buffers of the first
        for i, p in enumerate(parameters[:-1]):
            generator = torch.Generator().manual_seed(100 * round_ + 10 * i + ranks.rank)
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        numbers = mean(parameters, torch.tensor([1.0 + ranks.rank, 5.0, float("inf") if ranks.rank else 0.0]).double())
        assert unused.grad is None
        assert layer.weight.grad is not None
        assert layer.weight.grad.stride() == layer.weight.stride()
        assert all(p.grad.data_ptr() % 16 == 0 for p in parameters[:-1] if p.grad is not None)
    assert len(mean._buffers) == 2
    return {str(i): p.grad for i, p in enumerate(parameters[:-1]) if p.grad is not None} | {"numbers": numbers}


def test_gradients_are_averaged_in_one_buffer(tmp_path: Path) -> None:
    results = in_ranks(2, "test_dist:gradients", tmp_path)
    for i, (shape, dtype) in enumerate((((5, 3, 3, 3), torch.float32), ((5,), torch.float32), ((7,), torch.float64))):
        seeds = [torch.Generator().manual_seed(100 + 10 * i + rank) for rank in range(2)]
        expected = sum(torch.randn(shape, generator=g, dtype=dtype) for g in seeds) / 2
        assert torch.equal(results[0][str(i)], expected)
        assert torch.equal(results[1][str(i)], expected)
    assert results[1]["numbers"].tolist() == [1.5, 5.0, float("inf")]


def one_dies(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    ranks.barrier()
    if ranks.rank == 1:
        os._exit(0)
    began = time.monotonic()
    with pytest.raises(RankLost, match=r"another rank is gone.*goes on from the last checkpoint"):
        ranks.barrier()
    (folder / "seconds").write_text(str(time.monotonic() - began))
    os._exit(0)


def test_a_rank_that_is_gone_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # nobody returns a result
        in_ranks(2, "test_dist:one_dies", tmp_path, folder=tmp_path)
    assert float((tmp_path / "seconds").read_text()) < 10


def test_ranks_that_do_not_come_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (environment_of(1, 2, 1) | {"FASTGAN_RANK_TIMEOUT": "0.1"}).items():
        monkeypatch.setenv(name, value)
    said = r"rank 1 of 2 did not find the others at 127.0.0.1:1 within 0.1 s"
    with pytest.raises(RankLost, match=said), dist.joined("cpu"):
        pass
