"""Compiling Triton kernels ahead of time, for GPUs that are not here, and what came out of it.

An op's triton.py has `aot_cases()`: calls of its kernel as it would launch them, with tensors on the "meta" device,
which have a type and no memory. The arguments are specialised as a launch does it: a pointer to fresh memory is a
multiple of 16, and so may an integer be.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import Any

import triton  # type: ignore[import-untyped]
from torch import Tensor
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]

# Compute capability -> shared memory that one block can have, KiB
BUDGETS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

TYPES = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16", "uint8": "u8"}
TYPES |= {"int32": "i32", "int64": "i64"}

# What is looked for in the machine code -> how its instructions are called there
INSTRUCTIONS = {
    "wgmma": r"[HIQ]GMMA",
    "tcgen05": r"UT[C]\w*MMA",
    "mma": r"[HID]MMA",
    "TMA": r"UTMA(LDG|STG|REDG)\w*|UBLKCP",
}


@dataclass(frozen=True)
class AotCase:
    """One launch of `kernel` with `arguments` by name, and options such as num_warps.

    capabilities: of the GPUs that it would be launched on; default: all
    """

    op: str
    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    capabilities: tuple[int, ...] = tuple(BUDGETS)


@dataclass(frozen=True)
class Compiled:
    """registers: per thread; spills: instructions that store to or load from local memory; shared: bytes."""

    capability: int
    registers: int
    spills: int
    shared: int
    instructions: tuple[str, ...]

    def problem(self) -> str:
        """Why this must not be, or ""."""
        budget = BUDGETS[self.capability] * 1024
        problems = [f"{self.spills} spills"] if self.spills else []
        problems += [f"{self.shared} bytes of shared memory where {budget} are there"] if self.shared > budget else []
        return ", ".join(problems)


@dataclass(frozen=True)
class Specialised:
    """What a launch makes of arguments: types, values that are compiled in, and what else is known of the others."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]


def specialise(case: AotCase) -> Specialised:
    made = Specialised({}, {}, {})
    for i, name in enumerate(case.kernel.arg_names):
        value = case.arguments[name]
        is_int = isinstance(value, int) and not isinstance(value, bool)
        known = not case.kernel.params[i].do_not_specialize
        if case.kernel.params[i].is_constexpr or value is None or (is_int and value == 1 and known):
            made.signature[name], made.constants[name] = "constexpr", value
        elif hasattr(value, "block_shape"):  # a tensor descriptor
            dtype = TYPES[str(value.base.dtype).removeprefix("torch.")]
            made.signature[name] = f"tensordesc<{dtype}{list(value.block_shape)}>"
        elif isinstance(value, Tensor):
            made.signature[name] = "*" + TYPES[str(value.dtype).removeprefix("torch.")]
        elif is_int:
            made.signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            made.signature[name] = "fp32"
        if name not in made.constants and (isinstance(value, Tensor) or (is_int and value % 16 == 0 and known)):
            made.attributes[(i,)] = [["tt.divisibility", 16]]
    return made


def compile_case(case: AotCase, capability: int) -> Compiled:
    """Compiles for sm_<capability>. Raises what the compiler raises."""
    of = specialise(case)
    source = ASTSource(case.kernel, of.signature, of.constants, of.attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=case.options)
    registers, spills, instructions = _read(made.asm["cubin"])
    return Compiled(capability, registers, spills, made.metadata.shared, instructions)


def _read(cubin: bytes) -> tuple[int, int, tuple[str, ...]]:
    """(registers, spills, instructions) of the one kernel in `cubin`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = max(map(int, re.findall(r"\bREG:(\d+)", text)))
    spills = len(re.findall(r"\b(?:STL|LDL)\b", text))
    seen = tuple(name for name, pattern in INSTRUCTIONS.items() if re.search(rf"\b(?:{pattern})\b", text))
    return registers, spills, seen
