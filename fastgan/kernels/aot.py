"""Compiles every Triton kernel ahead of time for every architecture, without a GPU, and shows what came out.

    python -m fastgan.kernels.aot [--arch 90 ...] [--case TEXT ...] [--sample] [--jobs N]

One line per kernel and architecture: registers per thread, spills, shared memory, and which of the instructions that a
kernel may be built on (wgmma, tcgen05, mma, TMA) are in its code. Exit status: 0, or 1 where something does not
compile, spills registers, or takes more shared memory than a block can have.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from fastgan.kernels._runtime.aot import BUDGETS, AotCase, Compiled, compile_case, specialise
from fastgan.kernels.conv_transpose_bn_act import cases as conv_transpose
from fastgan.kernels.masked_act import triton as masked_act
from fastgan.kernels.modulated_act import triton as modulated_act

CASES = (masked_act.aot_cases, modulated_act.aot_cases, conv_transpose.aot_cases)  # of every op
COLUMNS = ("op", "case", "arch", "registers", "spills", "shared", "instructions", "")


@functools.cache
def kernels() -> tuple[AotCase, ...]:
    """The cases of all ops, without those that come to the same kernel as an earlier one."""
    different: dict[str, AotCase] = {}
    for cases in CASES:
        for case in cases():
            key = f"{case.kernel.__name__} {case.op} {specialise(case)} {case.options} {case.capabilities}"
            different.setdefault(key, case)
    return tuple(different.values())


def compile_one(job: tuple[int, int]) -> Compiled | str:
    """Compiles kernel number job[0] for sm_<job[1]>. Returns why not where it does not compile."""
    try:
        return compile_case(kernels()[job[0]], job[1])
    except Exception as error:  # of many kinds; each is one line of the table
        lines = str(error).strip().splitlines() or ["no message"]
        return f"does not compile: {type(error).__name__}: {lines[0][:160]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastgan.kernels.aot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", type=int, action="append", choices=BUDGETS, help="default: all")
    parser.add_argument("--case", action="append", help="part of the name of a case; default: all cases")
    parser.add_argument(
        "--sample", action="store_true", help="one case of every kernel for one of the architectures in turn"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per CPU")
    options = parser.parse_args(arguments)
    wanted = [i for i, case in enumerate(kernels()) if any(text in case.name for text in options.case or [""])]
    if not wanted:
        parser.error(f"no case is called like {' or '.join(map(repr, options.case))}")
    known = [(i, capability) for i in wanted for capability in options.arch or BUDGETS]
    jobs = [(i, capability) for i, capability in known if capability in kernels()[i].capabilities]
    if not jobs:
        parser.error("no such case is for these architectures")
    if options.sample:
        jobs = _sample(jobs)
    if options.jobs > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(min(len(jobs), options.jobs)) as pool:
            outcomes = list(pool.map(compile_one, jobs))
    else:
        outcomes = list(map(compile_one, jobs))
    rows = [_row(kernels()[i], capability, outcome) for (i, capability), outcome in zip(jobs, outcomes, strict=True)]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    problems = sum(1 for row in rows if row[-1])
    print(f"{len(rows)} kernels, {problems or 'no'} problems")
    return 1 if problems else 0


def _sample(jobs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of each kernel one job for one of the six architectures, for the next one of the next kernel."""
    cases: dict[tuple[str, str, int], list[int]] = {}
    for i, capability in jobs:
        cases.setdefault((kernels()[i].op, kernels()[i].kernel.__name__, capability), []).append(i)
    turn = {capability: n for n, capability in enumerate(BUDGETS)}
    number = {kernel: n for n, kernel in enumerate(dict.fromkeys(key[:2] for key in cases))}
    return [
        (numbers[turn[key[2]] * len(numbers) // len(turn)], key[2])
        for key, numbers in cases.items()
        if (turn[key[2]] + number[key[:2]]) % len(turn) == 0
    ]


def _row(case: AotCase, capability: int, outcome: Compiled | str) -> tuple[str, ...]:
    start = (case.op, case.name, f"sm_{capability}")
    if isinstance(outcome, str):
        return (*start, "", "", "", "", outcome)
    numbers = (outcome.registers, outcome.spills, outcome.shared)
    return (*start, *map(str, numbers), " ".join(outcome.instructions) or "-", outcome.problem())


if __name__ == "__main__":
    sys.exit(main())
