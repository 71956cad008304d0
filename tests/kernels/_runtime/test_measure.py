"""Choice by measurement, with a clock and a device that are made up; and on a GPU with real ones."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastgan.kernels._runtime import cache, measure
from fastgan.kernels._runtime.measure import Unfit, compare, relative

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
X = torch.linspace(-2, 3, 101)


class Clock:
    """Stands for the device: the time of each candidate, and how often it was asked for."""

    def __init__(self, **times: float) -> None:
        self.times, self.asked, self.runs = times, 0, 0

    def candidates(self, **runs: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
        self.names = list(runs)
        return runs

    def __call__(self, runs: Sequence[object]) -> list[float]:
        self.asked += 1
        here = [name for name in self.names if any(run is self.by_name[name] for run in runs)]
        return [self.times[name] for name in here]

    by_name: dict[str, object] = {}  # noqa: RUF012


@pytest.fixture(autouse=True)
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTGAN_KERNELS", raising=False)
    monkeypatch.setattr(measure, "_decided", {})
    monkeypatch.setattr(measure, "_wrong", {})
    monkeypatch.setattr(cache, "machine", lambda device: "a GPU, driver 1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())


def ask(monkeypatch: pytest.MonkeyPatch, times: dict[str, float], **runs: Callable[[], Tensor]) -> tuple[str, Clock]:
    clock = Clock(**times)
    clock.by_name = dict(runs)
    monkeypatch.setattr(measure, "_time", clock)
    return measure.decide("op", "shape", clock.candidates(**runs), GPU), clock


def library() -> Tensor:
    return X.sin()


def ours() -> Tensor:
    return X.sin() * (1 + 1e-7)


def wrong() -> Tensor:
    return X.sin() + 1e-3


def broken() -> Tensor:
    raise RuntimeError("no code for this device\nand a long story")


@pytest.mark.parametrize(("times", "winner"), [((2.0, 1.0), "ours"), ((1.0, 2.0), "library"), ((1.0, 1.0), "library")])
def test_the_fastest_is_taken_and_remembered(
    times: tuple[float, float], winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = dict(zip(("library", "ours"), times, strict=True))
    name, clock = ask(monkeypatch, by_name, library=library, ours=ours)
    assert (name, clock.asked) == (winner, 1)
    name, clock = ask(monkeypatch, by_name, library=library, ours=ours)
    assert (name, clock.asked) == (winner, 0)  # in this process
    monkeypatch.setattr(measure, "_decided", {})
    name, clock = ask(monkeypatch, by_name, library=library, ours=ours)
    assert (name, clock.asked) == (winner, 0)  # in the next one
    monkeypatch.setattr(measure, "_decided", {})
    monkeypatch.setattr(cache, "machine", lambda device: "a GPU, driver 2")
    assert ask(monkeypatch, by_name, library=library, ours=ours)[1].asked == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(wrong, r"the error of result 0 is 0\.0\d+, where 2e-05 is allowed"), (broken, "RuntimeError: no code for this")],
)
def test_one_that_is_wrong_or_raises_is_given_up_with_one_warning(
    bad: Callable[[], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"library": 3.0, "bad": 1.0, "ours": 2.0}
    with pytest.warns(
        RuntimeWarning, match=f"op does without bad on cuda:0 from now on, because {reason}.*report"
    ) as w:
        name, _ = ask(monkeypatch, times, library=library, bad=bad, ours=ours)
    assert name == "ours"
    assert len(w) == 1
    monkeypatch.setattr(measure, "_decided", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure.decide("op", "another shape", {"library": library, "bad": bad}, GPU) == "library"


def test_all_takes_ours_without_a_clock_but_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    name, clock = ask(monkeypatch, {"library": 1.0, "ours": 9.0}, library=library, ours=ours)
    assert (name, clock.asked) == ("ours", 0)
    monkeypatch.setattr(measure, "_decided", {})
    with pytest.warns(RuntimeWarning, match="does without wrong"):
        assert ask(monkeypatch, {}, library=library, wrong=wrong)[0] == "library"


def test_library_mode_and_cpus_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.decide("op", "shape", {"library": broken, "ours": broken}, CPU) == "library"
    monkeypatch.setenv("FASTGAN_KERNELS", "library")
    assert measure.decide("op", "shape", {"library": broken, "ours": broken}, GPU) == "library"


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    times = {"library": 2.0, "ours": 1.0}
    assert ask(monkeypatch, times, library=broken, ours=broken)[0] == "library"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert ask(monkeypatch, times, library=library, ours=ours)[0] == "ours"  # the capture has decided nothing
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(measure, "_decided", {})
    assert ask(monkeypatch, times, library=broken, ours=broken)[0] == "ours"  # from the file


def test_too_little_memory_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def large() -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(monkeypatch, {}, library=library, ours=large)[0] == "library"
    monkeypatch.setattr(measure, "_decided", {})
    assert ask(monkeypatch, {"library": 2.0, "ours": 1.0}, library=library, ours=ours)[0] == "ours"


def test_half_types_may_err_twice_as_much_as_the_library() -> None:
    exact = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    theirs = exact.bfloat16()
    compare([theirs], [theirs], [exact])
    error = (theirs.double() - exact).norm()
    worse = (theirs.double() + torch.randn(1000).double().sign() * error * 3 / 1000**0.5).bfloat16()
    with pytest.raises(Unfit, match="the error of result 0"):
        compare([worse], [theirs], [exact])


def test_what_counts_as_different() -> None:
    nan = torch.tensor([1.0, torch.nan])
    assert relative(nan, nan) == 0
    assert relative(torch.ones(2), nan) != relative(torch.ones(2), nan)  # NaN, which is in no bound
    assert relative(torch.tensor([torch.inf]), torch.tensor([torch.inf])) == 0
    assert relative(torch.zeros(3), torch.zeros(3)) == 0
    with pytest.raises(Unfit, match=r"float32 \(3,\), where PyTorch's are float32 \(4,\)"):
        compare([torch.ones(3)], [torch.ones(4)], [torch.ones(4)])
    pair = [torch.ones(3), torch.arange(3)]
    with pytest.raises(Unfit, match="result 1 differs"):
        compare([torch.ones(3), torch.arange(3) + 1], pair, pair)
    with pytest.raises(Unfit):
        compare([nan[:1] * torch.nan], [nan[:1]], [nan[:1]])


def _rank(rank: int, folder: str, queue: object) -> None:
    """Rank 0 finds ours faster, rank 1 the library: both take what rank 0 says."""
    import os

    import torch.distributed

    from fastgan import dist

    os.environ["FASTGAN_CACHE"] = f"{folder}/{rank}"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    cache.machine = lambda device: "a GPU"  # type: ignore[assignment]
    torch.cuda.is_current_stream_capturing = lambda: False  # type: ignore[assignment]
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    torch.cuda.device = lambda _: torch.no_grad()  # type: ignore[assignment,misc]
    measure._time = lambda runs: [2.0, 1.0] if rank == 0 else [1.0, 2.0]
    made = []
    if rank == 0:  # outside of a turn a rank decides for itself, whether or not the others come too
        made = [measure.decide("op", "shape of a picture", {"library": library, "ours": ours}, GPU)]
    with dist.joined("cpu") as ranks, dist.playing(ranks):
        made.append(measure.decide("op", "shape", {"library": library, "ours": ours}, GPU))
        try:
            measure.decide("op", f"shape of rank {rank}", {"library": library, "ours": ours}, GPU)
        except RuntimeError as error:
            made.append(str(error))
    queue.put((rank, made))  # type: ignore[attr-defined]
    torch.distributed.destroy_process_group()


def test_rank_0_decides_for_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(i, str(tmp_path), queue)) for i in range(2)]
    for process in ranks:
        process.start()
    made = dict(queue.get(timeout=100) for _ in ranks)
    for process in ranks:
        process.join(timeout=20)
    assert made[0] == ["ours", "ours"]
    assert made[1][0] == "ours"
    assert "rank 0 about op: shape of rank 0, this one about op: shape of rank 1" in made[1][1]
