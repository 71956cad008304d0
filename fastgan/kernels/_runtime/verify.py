"""Running the checks of the ops on the GPUs that are here, and recording what came out, for `fastgan doctor --verify`.

A check compares the op, with our kernel forced on, with float64 on the shapes that its tests use; see
fastgan/kernels/verify.py. What has passed is recorded per op, architecture and versions, and choose() accepts it like
the results that come with fastgan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from fastgan.kernels._runtime import cache
from fastgan.kernels._runtime.choice import PASSED, architecture_of, choose, first_line, forced, verification

Check = Callable[[torch.device], int]
"""Checks an op on a device and returns the number of comparisons. Raises Unfit, or whatever the kernel raises."""


@dataclass(frozen=True)
class Verdict:
    """outcome: "passed", "failed" or "skipped";  detail: how many comparisons, or why not."""

    op: str
    device: str
    outcome: str
    detail: str


def verify_ops(checks: Mapping[str, Check], devices: list[torch.device]) -> Iterator[Verdict]:
    """One verdict per op and device. Devices of one architecture count as one: the first of them is used."""
    first = {architecture_of(device): device for device in reversed(devices)}
    for architecture, device in sorted(first.items()):
        for op, check in checks.items():
            verdict = _verify_one(op, check, device)
            if verdict.outcome != "skipped":
                record = PASSED if verdict.outcome == "passed" else verdict.detail
                cache.remember("verified", {verification(op, architecture): record})
                choose.cache_clear()
            yield verdict


def _verify_one(op: str, check: Check, device: torch.device) -> Verdict:
    with forced("all"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a kernel that is disabled: it is the verdict here
        choice = choose(op, device)
        if not choice.native:
            return Verdict(op, str(device), "skipped", choice.reason)
        try:
            with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
                count = check(device)
        except torch.OutOfMemoryError as error:
            return Verdict(op, str(device), "skipped", first_line(error))
        except Exception as error:  # of many kinds, and each of them is a verdict
            return Verdict(op, str(device), "failed", first_line(error))
        after = choose(op, device)
        if not after.native:  # else PyTorch would have been compared with itself
            return Verdict(op, str(device), "failed", after.reason)
        if count == 0:
            return Verdict(op, str(device), "failed", "nothing was compared")
    return Verdict(op, str(device), "passed", f"{count} comparisons")
