"""Imports point downward only, there is no circle, and only the command line knows tyro and rich."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastgan"

# Room -> rooms that it may import. A room is a module or a folder directly under fastgan/.
ANYWHERE = {"errors", "_version"}
BELOW: dict[str, set[str]] = {
    "__init__": {"generator", "translator"},
    "_version": set(),
    "__main__": {"cli", "terminal"},
    "trained": {
        "assemble",
        "config",
        "contract",
        "data",
        "export",
        "gans",
        "generator",
        "pictures",
        "run",
        "translator",
    },
    "transformed": {"config", "contract", "data", "gans", "models", "pictures", "run", "trained"},
    "scores": {
        "data",
        "dist",
        "evaluation",
        "features",
        "image_scores",
        "metrics",
        "assemble",
        "trained",
    },
    "image_scores": {"contract", "features", "metrics", "pictures"},
    "allocator": set(),
    "cli": {
        "allocator",
        "assemble",
        "dist",
        "launch",
        "bench",
        "config",
        "data",
        "presets",
        "scores",
        "train",
        "trained",
        "transformed",
        "trial",
        "encode",
        "ticker",
        "terminal",
        "kernels",
        "__init__",
    },
    "encode": {"config", "contract", "data", "pictures", "run", "trained"},
    "config": {"options", "presets", "schedule"},
    "image_presets": {"data", "evaluation", "gans", "models", "optim", "options", "schedule"},
    "presets": {
        "augment",
        "contract",
        "data",
        "evaluation",
        "gans",
        "image_presets",
        "models",
        "optim",
        "options",
        "schedule",
    },
    "options": {"contract", "data", "evaluation", "optim", "schedule", "step"},
    "against": {"baseline", "baseline_styles", "baseline_turns", "contract", "gans", "options", "step"},
    "trial": {
        "against",
        "bench",
        "capture",
        "config",
        "contract",
        "cost",
        "data",
        "gans",
        "kernels",
        "options",
        "presets",
        "step",
        "assemble",
    },
    "baseline": {"contract", "models", "optim", "schedule"},
    "baseline_styles": {"baseline", "gans", "models", "optim", "schedule"},
    "baseline_turns": {"baseline", "contract", "kernels", "optim", "penalty", "schedule"},
    "cost": {"contract", "kernels", "losses"},
    "export": {"generator", "translator"},
    "exported": set(),
    "generator": {"contract", "exported", "gans", "models"},
    "translator": {"contract", "exported", "models"},
    "launch": set(),
    "terminal": set(),
    "train": {
        "assemble",
        "capture",
        "contract",
        "data",
        "evaluation",
        "features",
        "dist",
        "feeding",
        "kernels",
        "meeting",
        "metrics",
        "options",
        "pictures",
        "run",
        "step",
        "ticker",
    },
    "meeting": {"contract", "data", "dist", "run"},
    "assemble": {"capture", "dist", "options", "step"},
    "feeding": {"data"},
    "ticker": {"bench", "capture", "contract", "data", "run", "step", "terminal"},
    "evaluation": {"contract", "data", "dist", "features", "metrics", "pictures"},
    "pictures": {"contract", "data", "step"},
    "capture": {"contract", "step"},
    "step": {"contract", "dist", "flat", "gans", "nn", "optim", "schedule"},
    "gans": {
        "augment",
        "contract",
        "critic_inputs",
        "dist",
        "features",
        "losses",
        "models",
        "penalty",
        "schedule",
    },
    "models": {"contract", "nn"},
    "nn": {"kernels"},
    "penalty": {"critic_inputs", "sweep"},
    "sweep": {"dist", "kernels"},
    "critic_inputs": set(),
    "losses": set(),
    "augment": {"contract", "schedule"},
    "optim": {"flat", "kernels", "schedule"},
    "flat": {"dist"},
    "data": {"contract", "kernels", "run"},
    "run": set(),
    "bench": set(),
    "contract": {"kernels", "schedule"},
    "schedule": set(),
    "errors": set(),
    "dist": set(),
    "kernels": {"dist"},
    "features": {"data"},
    "metrics": {"data", "dist", "features", "kernels"},
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, relative ones made absolute, also inside functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str:
    parts = dotted.split(".")
    if len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()):
        return parts[1]
    return "__init__"


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    assert own in BELOW, f"fastgan/{own} is a new room: say in BELOW what it may import"
    for name in imports(path):
        if name.split(".")[0] == "fastgan":
            target = room(name)
            assert target in BELOW[own] | ANYWHERE | {own}, f"fastgan.{own} imports {name}, which is not below it"
        if name.split(".")[0] in ("tyro", "rich"):
            assert own == "cli", f"{relative} imports {name}; only cli.py may"


def test_rooms_have_no_circle() -> None:
    graph = {own: below - {own} for own, below in BELOW.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) >= set(BELOW)


def test_modules_have_no_circle() -> None:
    def module(path: Path) -> str:
        return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    known = {module(p) for p in files()}
    graph: dict[str, set[str]] = {}
    for path in files():
        targets = set()
        for name in imports(path):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module(path):
                targets.add(name)
        graph[module(path)] = targets
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_layers_and_penalties_do_not_pay_for_the_trainer() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fastgan.penalty, fastgan.losses, fastgan.models; "
        "bad = [m for m in sys.modules if m.startswith(('fastgan.train', 'fastgan.data', 'fastgan.run', "
        "'fastgan.cli', 'tyro', 'rich', 'PIL'))]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_stays_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"files over 400 lines: {long}"
