"""Ahead-of-time compilation: of this package's kernels, and that spills, budgets, instructions and errors are seen."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fastgan.kernels import aot  # noqa: E402
from fastgan.kernels._runtime.aot import BUDGETS, AotCase, Compiled, compile_case, specialise  # noqa: E402
from fastgan.kernels.masked_act import triton as masked_act  # noqa: E402

X = torch.empty(4096, device="meta")


@triton.jit
def greedy(x, out, SIZE: tl.constexpr):
    """Needs SIZE / 32 registers at once."""
    at = tl.arange(0, SIZE)
    numbers = tl.load(x + at)
    tl.store(out + at, numbers - tl.sum(numbers, axis=0))


@triton.jit
def product(x, out, K, SIZE: tl.constexpr):
    """x xᵀ with tiles of SIZE, through shared memory."""
    row = tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, K, SIZE):
        a = tl.load(x + row[:, None] * K + k + row[None, :])
        total = tl.dot(a, tl.trans(a), total)
    tl.store(out + row[:, None] * SIZE + row[None, :], total)


@triton.jit
def wrong(x):
    tl.store(x, no_such_name)  # noqa: F821


def greedy_case(**options: Any) -> AotCase:
    return AotCase("test", "greedy", greedy, {"x": X, "out": X, "SIZE": 4096}, {"num_warps": 1, **options})


def product_case(stages: int) -> AotCase:
    arguments = {"x": X.half(), "out": X, "K": 4096, "SIZE": 128}
    return AotCase("test", "product", product, arguments, {"num_warps": 8, "num_stages": stages})


@pytest.fixture(autouse=True)
def nothing_compiled_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """only(*cases): the command knows these alone."""
    aot.kernels.cache_clear()
    yield lambda *cases: monkeypatch.setattr(aot, "CASES", (lambda: list(cases),))
    aot.kernels.cache_clear()


@pytest.mark.timeout(240)  # on a busy machine
def test_the_command_compiles_every_kernel() -> None:
    """One case each for one of the six architectures; all of them take some minutes."""
    command = [sys.executable, "-m", "fastgan.kernels.aot", "--sample", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines, last = done.stdout.splitlines()
    assert head.split() == ["op", "case", "arch", "registers", "spills", "shared", "instructions"]
    rows = [[text.strip() for text in line.split("  ") if text] for line in lines]
    assert last == f"{len(rows)} kernels, no problems"
    assert {row[2] for row in rows} == {f"sm_{capability}" for capability in BUDGETS}
    assert {int(row[4]) for row in rows} == {0}, "spills"
    assert all(16 <= int(row[3]) <= 255 for row in rows)
    for op, capability in itertools.product(("masked_act", "conv_transpose"), BUDGETS):
        mine = [row for row in rows if (row[0], row[2]) == (op, f"sm_{capability}")]
        assert len(mine) in ((0, 1) if op == "masked_act" else (0, 1, 2))
        found = {word for row in mine for word in row[6].split()} - {"-", "TMA"}
        product = {90: {"wgmma", "mma"}, 100: {"tcgen05"}}.get(capability, {"mma"})
        assert found <= (product if op == "conv_transpose" else set())
    assert len(rows) == 9
    assert {"mma", "wgmma"} & {word for row in rows if row[0] == "conv_transpose" for word in row[6].split()}


def test_loads_and_stores_are_as_wide_as_they_can_be() -> None:
    """16 bytes at a time, which is lost when a launch's alignments are not passed on to the compiler."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for case in masked_act.aot_cases():
        if "dcgan-64 critic, bf16" in case.name:
            of = specialise(case)
            source = ASTSource(case.kernel, of.signature, of.constants, of.attributes)
            code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=case.options).asm["ptx"]
            assert "ld.global.v4.b32" in code
            assert "st.global.v4.b32" in code


def test_arguments_are_specialised_as_at_a_launch() -> None:
    arguments = {"x": X, "out": None, "K": 1, "SIZE": 128}
    made = specialise(AotCase("test", "", product, arguments))
    assert made.signature == {"x": "*fp32", "out": "constexpr", "K": "constexpr", "SIZE": "constexpr"}
    assert made.constants == {"out": None, "K": 1, "SIZE": 128}
    assert made.attributes == {(0,): [["tt.divisibility", 16]]}
    for value, kind, multiple in (
        (48, "i32", True),
        (2**31 - 1, "i32", False),
        (2**31, "i64", True),
        (0.5, "fp32", False),
    ):
        made = specialise(AotCase("test", "", product, {**arguments, "K": value}))
        assert made.signature["K"] == kind
        assert ((2,) in made.attributes) == multiple


def test_cases_that_come_to_the_same_kernel_are_compiled_once(only: Callable[..., None]) -> None:
    only(greedy_case(), greedy_case(), greedy_case(maxnreg=64))
    assert len(aot.kernels()) == 2
    aot.kernels.cache_clear()
    only(product_case(2), product_case(2))
    assert len(aot.kernels()) == 1


def test_spills_are_seen() -> None:
    free, tight = compile_case(greedy_case(), 90), compile_case(greedy_case(maxnreg=64), 90)
    assert free.spills == 0
    assert free.problem() == ""
    assert free.registers > 128
    assert tight.registers <= 64
    assert tight.problem() == f"{tight.spills} spills"
    assert tight.spills > 10


def test_instructions_and_shared_memory_are_seen() -> None:
    hopper, ada = compile_case(product_case(5), 90), compile_case(product_case(5), 89)
    assert hopper.instructions == ("wgmma",)
    assert ada.instructions == ("mma",)
    assert ada.shared > 99 * 1024
    assert ada.problem() == f"{ada.shared} bytes of shared memory where {99 * 1024} are there"
    assert hopper.problem() == ""
    assert "tcgen05" in compile_case(product_case(2), 100).instructions


def test_budgets() -> None:
    assert BUDGETS == {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
    for capability, budget in BUDGETS.items():
        assert not Compiled(capability, 255, 0, budget * 1024, ()).problem()
        assert Compiled(capability, 255, 0, budget * 1024 + 1, ()).problem()


def test_the_command_fails_on_what_must_not_be(only: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    only(greedy_case(), greedy_case(maxnreg=64), AotCase("test", "wrong", wrong, {"x": X}))
    assert aot.main(["--arch", "90", "--jobs", "1"]) == 1
    _, free, tight, broken, last = capsys.readouterr().out.splitlines()
    assert free.endswith(" -")
    assert tight.endswith(" spills")
    assert "does not compile: CompilationError" in broken
    assert last == "3 kernels, 2 problems"


def test_a_name_that_no_case_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        aot.main(["--case", "criticc", "--jobs", "1"])
    assert ended.value.code == 2
    assert "no case is called like 'criticc'" in capsys.readouterr().err
