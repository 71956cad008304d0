"""Whole runs on several ranks: stopping, going on with another number of them, errors of one, scores."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import in_ranks
from test_train import STEPS, config, weights
from torch import Tensor

from fastgan import train as trainer
from fastgan.assemble import build_state
from fastgan.dist import Ranks, StoppedElsewhere
from fastgan.errors import FastganError
from fastgan.meeting import Meeting
from fastgan.run import folder
from fastgan.run.log import read_statistics
from fastgan.train import DONE, RESUMABLE, Outcome

DIGITS_SCORES = ("evaluation.features=digits", "evaluation.samples=48", "evaluation.every_kimg=0.16")


def run(out: Path, *sets: str, on_tick: Callable[[object], None] = lambda tick: None) -> Outcome:
    """A run in float64, on all ranks that there are."""
    trainer.build_state = functools.partial(build_state, dtype=torch.float64)
    try:
        return trainer.train(config(out, *sets), echo=lambda line: None, on_tick=on_tick)
    finally:
        trainer.build_state = build_state


def at_step(number: int, rank: int, ranks: Ranks, action: Callable[[Meeting], None]) -> None:
    """Have one rank do something before all agree on step `number`, counted from the start of this process."""
    agree, count = Meeting.agree, iter(range(10**6))

    def watched(self: Meeting) -> None:
        if next(count) == number and ranks.rank == rank:
            action(self)
        agree(self)

    Meeting.agree = watched  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one rank, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(out, *DIGITS_SCORES).status == DONE
    return out


def assert_same(out: Path, whole: Path) -> None:
    mine, theirs = weights(out), weights(whole)
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        error = (tensor - theirs[key]).double().norm() / theirs[key].double().norm().clamp(min=1)
        assert error < 1e-10, f"{key} differs by {error:.1e}"
    one, other = (read_statistics(path / "stats.jsonl") for path in (out, whole))
    assert one["images"].tolist() == other["images"].tolist() == [16 * i for i in range(1, STEPS + 1)]
    for name in ("critic.loss", "critic.r1", "generator.loss", "critic.gradient_norm", "score.fid"):
        torch.testing.assert_close(
            torch.from_numpy(one[name]), torch.from_numpy(other[name]), rtol=1e-5, atol=0, equal_nan=True
        )


def terminated(ranks: Ranks, out: Path) -> dict[str, Tensor]:
    at_step(7, 1, ranks, lambda meeting: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run(out, *DIGITS_SCORES)
    os.kill(os.getpid(), signal.SIGTERM)  # as a launcher does when the first rank has ended: ignored by now
    return {"status": torch.tensor(outcome.status), "samples": torch.tensor(outcome.samples)}


def test_a_signal_to_one_rank_saves_and_one_rank_goes_on(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    for result in in_ranks(2, "test_train_ranks:terminated", tmp_path, out=out):
        assert result["status"] == RESUMABLE
        assert result["samples"] == 16 * 6  # the seventh time that they agree is about the grid and the checkpoint
    assert "stopped by SIGTERM at 0.1 kimg and saved" in (out / folder.RESUMABLE).read_text()
    assert "with 2 ranks" in (out / "log.txt").read_text()
    assert run(out, *DIGITS_SCORES).status == DONE
    assert not (out / folder.RESUMABLE).exists()
    assert_same(out, whole)


def goes_on(ranks: Ranks, out: Path) -> dict[str, Tensor]:
    return {"status": torch.tensor(run(out, *DIGITS_SCORES).status)}


class Enough(Exception):
    pass


def test_two_ranks_go_on_where_one_stopped(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"

    def stop(tick: object) -> None:
        if tick.samples >= 16 * 13:  # type: ignore[attr-defined]
            raise Enough

    with pytest.raises(Enough):
        run(out, *DIGITS_SCORES, on_tick=stop)
    assert folder.load(out, print).state["counters"] == {"step": 10, "samples": 160}
    assert [r["status"] for r in in_ranks(2, "test_train_ranks:goes_on", tmp_path, out=out)] == [DONE, DONE]
    assert_same(out, whole)


def errors(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """All kinds of errors of one rank, one after the other: each ends all ranks, and rank 0 has the line."""
    r = ranks.rank

    def fails(name: str, said: str, *sets: str, own: bool = False) -> None:
        kind = FastganError if own and r == 0 else StoppedElsewhere
        with pytest.raises(kind, match=said if r == 0 else "^$"):
            run(folder / name, *sets)
        ranks.barrier()

    plain_agree, plain_save, plain_next = Meeting.agree, trainer.checkpoints.save, trainer.Feeder.__next__
    fails("uneven", "batch of 15 images cannot be shared out to 2 ranks; use --batch 16 or 14", "batch=15", own=True)
    fails("seeds", r"rank 1 starts with other options.*need the same command", f"seed={r}", own=True)
    fails("gone", r"rank 1: nowhere-1 does not exist", *([f'resume="nowhere-{r}"'] if r else []))

    def unreadable(self: object) -> object:
        if r == 1 and self._sample >= 16 * 5:  # type: ignore[attr-defined]
            raise FastganError("cat.jpg is damaged")
        return plain_next(self)  # type: ignore[arg-type]

    trainer.Feeder.__next__ = unreadable  # type: ignore[method-assign]
    fails("image", "rank 1: cat.jpg is damaged")
    trainer.Feeder.__next__ = plain_next  # type: ignore[method-assign]

    def full(*args: object, **kwargs: object) -> Path:
        raise FastganError("the disk is full")

    if r == 0:
        trainer.checkpoints.save = full
    fails("disk", "^the disk is full$", own=True)
    trainer.checkpoints.save = plain_save
    fails("explodes", "in a row had a loss or gradient", "optim.critic.lr=1e30", "max_skipped=4", own=True)

    # One sample of one rank is not finite: nothing of that step is applied on any.
    plain_batch = Meeting.next_batch

    def next_batch(self: Meeting) -> object:
        batch = plain_batch(self)
        if r == 1 and int(batch.index[0]) == 16 * 3 + 8:
            batch.images[0] = torch.nan
        return batch

    Meeting.next_batch = next_batch  # type: ignore[assignment,method-assign]
    run(folder / "poisoned", "kimg=0.08")
    Meeting.next_batch = plain_batch  # type: ignore[method-assign]
    assert Meeting.agree is plain_agree
    return {"ok": torch.ones(1)}


def test_an_error_of_one_rank_ends_all(tmp_path: Path) -> None:
    in_ranks(2, "test_train_ranks:errors", tmp_path, folder=tmp_path)
    assert not (tmp_path / "uneven").exists()
    assert folder.load(tmp_path / "image", print).state["counters"]["step"] == 5, "what was trained is kept"
    assert all(t.isfinite().all() for t in weights(tmp_path / "poisoned").values())
    statistics = read_statistics(tmp_path / "poisoned" / "stats.jsonl")
    assert statistics["skipped"].tolist() == [0, 0, 0, 2, 2]
    assert statistics["skipped_in_a_row"].tolist() == [0, 0, 0, 1, 0]
