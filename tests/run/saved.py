"""Small checkpoints for tests, and what has to be in them."""

from pathlib import Path

import torch

from fastgan.run import checkpoint
from fastgan.run.checkpoint import load_latest, save


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "generator": {"weight": torch.full((3, 5), float(step)), "step": torch.tensor(step)},
        "optimizer": {"exp_avg": torch.full((7,), step / 2)},
    }


def save_step(folder: Path, step: int, keep: int = 3) -> Path:
    return save(folder, f"step-{step}", tensors_of(step), {"step": step}, keep=keep)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def load_warned(folder: Path) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    lines: list[str] = []
    found = load_latest(folder, lines.append)
    assert all("\n" not in line for line in lines)
    return found, lines


def assert_is_step(found: checkpoint.Checkpoint | None, step: int) -> None:
    assert found is not None
    assert found.state == {"step": step}
    for stem, group in tensors_of(step).items():
        for key, tensor in group.items():
            assert torch.equal(found.tensors[stem][key], tensor)
