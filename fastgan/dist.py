"""Ranks: the processes that train one model together, one per GPU, or several on a CPU.

torchrun (or `fastgan train --gpus N`) starts them and says in the environment which one each is; without it there is
one rank and nothing here does anything. Tensors on GPUs travel by NCCL, those of the host by gloo. Nothing is pickled.

A turn of the training step is played by all ranks at once (`playing`). What in it looks at the whole batch, not at
single samples, asks `group_sum` or `group_mean`; outside of a turn, as when rank 0 draws a picture, these are about one
rank.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from fastgan.errors import FastganError, RankFailed, RankLost, StoppedElsewhere

TIMEOUT_SECONDS = 1800.0
"""How long a rank waits for the others before it gives them up; FASTGAN_RANK_TIMEOUT in the environment comes first."""


@dataclass(frozen=True)
class Ranks:
    """Which rank this process is, and what it does together with the others.

    rank, world:             its number, from 0, and how many there are
    local_rank, local_world: the same on this machine
    host:                    the gloo group of all ranks, for tensors on the CPU; None where there is one rank
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    host: Any = field(default=None, compare=False)

    @property
    def first(self) -> bool:
        """Whether it is the rank that writes and prints."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """The device of this rank for a `device` of "auto" or "cuda": the GPU with its number; else as it is."""
        if self.world > 1 and name.startswith("cuda:"):
            raise FastganError(f"device {name!r} is one GPU, and there are {self.world} ranks; use --device cuda")
        if self.world == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        if self.local_world > torch.cuda.device_count():
            raise FastganError(
                f"{self.local_world} ranks on a machine with {torch.cuda.device_count()} GPUs; start at most one per "
                "GPU, or give --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def share(self, count: int) -> range:
        """This rank's part of the numbers 0 to count - 1: every world-th. `gather_rows` puts results in order again."""
        return range(self.rank, count, self.world)

    # ---- collective: every rank has to call these, in the same order

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor`, in place the sum over all ranks, on any device."""
        return self._reduce(tensor, distributed.ReduceOp.SUM)

    def highest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return int(self._reduce(torch.tensor([number]), distributed.ReduceOp.MAX)) if self.world > 1 else number

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.world > 1:
            with others_may_be_gone():
                distributed.all_reduce(tensor, operation, group=self._group(tensor))
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors [n_r, ...] of all ranks r, on each of them; n_r may differ, the rest of the shape not."""
        if self.world == 1:
            return [tensor]
        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = len(tensor)
        longest = int(self.sum_(counts).max())
        mine = tensor.new_zeros(longest, *tensor.shape[1:])
        mine[: len(tensor)] = tensor
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        with others_may_be_gone():
            distributed.all_gather(parts, mine, group=self._group(tensor))
        return [part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """[count, ...] in order, on every rank, of the rows for each rank's `share(count)`."""
        parts = self.gather(rows)
        count = sum(map(len, parts))
        whole = rows.new_empty(count, *rows.shape[1:])
        for rank, part in enumerate(parts):
            whole[rank :: self.world] = part
        return whole

    def gather_json(self, value: Any) -> list[Any]:
        """What each rank gives, as it comes back from JSON, by rank."""
        if self.world == 1:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self.gather(text)]

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives, as it comes back from JSON."""
        return self.gather_json(value if self.first else None)[0]

    def barrier(self) -> None:
        """Wait for all ranks. Raises RankLost where one is gone."""
        self.highest(0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is done within it, each rank for itself, has succeeded on all of them, or raises on all of them.

        A FastganError of rank 0 is raised there as it is, and one of another rank as StoppedElsewhere on rank 0, which
        names the rank; on the others what is raised has nothing to say. Within it nothing may be collective.
        """
        error: FastganError | None = None
        try:
            yield
        except FastganError as caught:
            if self.world == 1:
                raise
            error = caught
        self.meet(error)

    def meet(self, error: FastganError | None = None, flag: int = 0) -> int:
        """The highest `flag` (0 or more) of all ranks; where one of them has an error, all raise, as in `together`."""
        if self.world == 1:
            if error is not None:
                raise error
            return flag
        failed = 1 << 30
        agreed = self.highest(failed if error is not None else flag)
        if agreed < failed:
            return agreed
        said = self.gather_json(str(error) if error is not None else None)
        rank, line = next((rank, line) for rank, line in enumerate(said) if line is not None)
        if self.first and error is not None:
            raise error
        raise StoppedElsewhere(f"rank {rank}: {line}" if self.first else "") from error

    def check_same(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raise, as `together`, unless `tensors`, by file and name, are the same bits on all ranks."""
        if self.world == 1:
            return
        names = [f"{file}: {name}" for file, group in tensors.items() for name in group]
        marks = torch.stack([fingerprint(t) for group in tensors.values() for t in group.values()]).cpu()
        with others_may_be_gone():
            high, low = marks.clone(), marks
            distributed.all_reduce(high, distributed.ReduceOp.MAX, group=self.host)
            distributed.all_reduce(low, distributed.ReduceOp.MIN, group=self.host)
        differing = (high != low).nonzero().flatten().tolist()
        error = None
        if differing:
            error = FastganError(
                f"the ranks do not have the same weights ({names[differing[0]]} and {len(differing) - 1} others of "
                f"{len(names)} differ); start all ranks with the same options, files and versions, and go on from the "
                "last checkpoint"
            )
        self.meet(error)

    def _group(self, tensor: Tensor) -> Any:
        return self.host if tensor.device.type == "cpu" else distributed.group.WORLD


ALONE = Ranks()


@contextlib.contextmanager
def others_may_be_gone() -> Iterator[None]:
    """What a collective raises where another rank has died or does not come, as RankLost."""
    try:
        yield
    except RuntimeError as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise  # it is the capture that does not work, which fastgan.capture gives up
        raise RankLost(
            f"another rank is gone or did not answer ({_reason(error)}); its own output says why, and the same command "
            "goes on from the last checkpoint"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of what PyTorch says, without the place in its source."""
    text = re.sub(r"^\[\S+:\d+\]\s*", "", str(error).strip()) or type(error).__name__
    return re.split(r"\.\s|\n", text)[0][:160]


def fingerprint(tensor: Tensor) -> Tensor:
    """A 0-dim int64 on the device of `tensor` that depends on each of its bits and on where they are."""
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    bits = torch.nn.functional.pad(plain, (0, -len(plain) % 8)).view(torch.int64)
    place = torch.arange(1, len(bits) + 1, device=bits.device) * -0x61C8864680B583EB  # odd: products mod 2^64 differ
    return ((bits ^ (bits >> 29)) * (place | 1)).sum()


# ---- who is there


def from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The ranks as torchrun's variables say (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE); one rank without them."""

    def number(name: str, default: int) -> int:
        text = environment.get(name, str(default))
        if not text.isdigit():
            raise FastganError(f"the environment has {name}={text!r}, expected a number; start ranks with torchrun")
        return int(text)

    rank, world = number("RANK", 0), number("WORLD_SIZE", 1)
    ranks = Ranks(rank, world, number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", world))
    if not (ranks.rank < ranks.world and ranks.local_rank < ranks.local_world <= ranks.world):
        raise FastganError(
            f"the environment has RANK={rank} of WORLD_SIZE={world}, LOCAL_RANK={ranks.local_rank} of LOCAL_WORLD_SIZE="
            f"{ranks.local_world}, which does not fit together; start ranks with torchrun"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if world > 1 and missing:
        raise FastganError(f"WORLD_SIZE={world}, but {missing[0]} is not set; start ranks with torchrun")
    return ranks


def gpus_here() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def timeout_seconds(environment: Mapping[str, str] = os.environ) -> float:
    text = environment.get("FASTGAN_RANK_TIMEOUT", str(TIMEOUT_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise FastganError(f"FASTGAN_RANK_TIMEOUT={text!r}: expected seconds, such as 1800")


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """The ranks of this process, connected as long as this lasts; a group that is there already is used and left.

    device: as in the config; decides whether tensors travel by NCCL
    A FastganError of a rank that is not the first, of which the others do not know, leaves it as RankFailed.
    """
    ranks = from_environment()
    if distributed.is_available() and distributed.is_initialized():
        ranks = Ranks(distributed.get_rank(), distributed.get_world_size(), ranks.local_rank, ranks.local_world)
        yield _with_host_group(ranks)
        return
    if ranks.world == 1:
        yield ranks
        return
    name = ranks.device_name(device)
    on_gpu = name.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(name)
    seconds = timeout_seconds()
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankLost(
            f"rank {ranks.rank} of {ranks.world} did not find the others at {place} within {seconds:g} s "
            f"({_reason(error)})"
        ) from None
    try:
        yield _with_host_group(ranks)
    except BaseException as error:
        with contextlib.suppress(Exception):  # no goodbye: others may be stuck, and NCCL would wait for them
            (distributed.distributed_c10d._abort_process_group if on_gpu else distributed.destroy_process_group)()
        if isinstance(error, FastganError) and not ranks.first:
            raise RankFailed(f"rank {ranks.rank}: {error}") from error
        raise
    distributed.destroy_process_group()


def _with_host_group(ranks: Ranks) -> Ranks:
    gloo = distributed.get_backend() == "gloo"
    host = distributed.group.WORLD if gloo else distributed.new_group(backend="gloo")
    return Ranks(ranks.rank, ranks.world, ranks.local_rank, ranks.local_world, host)


# ---- within a turn

_playing: list[Ranks] = []  # not a context variable: autograd's threads have to see it


@contextlib.contextmanager
def playing(ranks: Ranks) -> Iterator[None]:
    """Within it all of `ranks` run the same turn, each on its own samples."""
    _playing.append(ranks)
    try:
        yield
    finally:
        _playing.pop()


def current() -> Ranks:
    """The ranks that play the present turn together; outside of one, this process alone."""
    return _playing[-1] if _playing else ALONE


def sum_over_ranks(vector: Tensor) -> Tensor:
    """`vector`, in place the sum over the ranks of the present turn: what batch normalisation takes (fastgan.nn)."""
    return current().sum_(vector)


def group_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the ranks of the present turn, differentiable to any order.

    Its derivative is that of the sum of all ranks' objectives, which the averaging of gradients divides by their
    number: so a loss may use it like a sum over the samples of the whole batch. All ranks have to run it, forward and
    backward, the same number of times.
    """
    return tensor if current().world == 1 else _Sum.apply(tensor)  # type: ignore[no-untyped-call]


def group_mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over the ranks of the present turn, differentiable to any order; see group_sum."""
    return group_sum(tensor) / current().world


def of_first(tensor: Tensor) -> Tensor:
    """What rank 0 has for `tensor`, on all ranks of the present turn, as a constant: a number for all samples."""
    ranks = current()
    if ranks.world == 1:
        return tensor.detach()
    return ranks.sum_(tensor.detach().clone() if ranks.first else torch.zeros_like(tensor))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)  # type: ignore[no-any-return,no-untyped-call]
