"""Two ranks train as one does on the same global batches: every preset's players, losses and penalties."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import in_ranks
from small_presets import batch_of, smallest, step_of
from torch import Tensor

from fastgan.dist import ALONE, Ranks
from fastgan.presets import PRESETS
from fastgan.train import Config

STEPS = 20
ALL = os.environ.get("FASTGAN_TESTS") == "all"
# A penalty of a critic whose samples are coupled over all ranks, which is differentiated twice through that.
COUPLED = "batch normalisation with penalties"
# One of each family and penalty, and those that share something between samples.
FEW = (
    "digits",
    "digits-conditional",
    "r3gan-32",
    "cyclegan-digits",
)
CHOSEN = [name for name in PRESETS if ALL or name in FEW]


def configs() -> dict[str, Config]:
    # With batches of 4, BEGAN's autoencoder and batch normalisation blow rounding up to 1e-8 in 20 steps.
    presets = {name: smallest(name, batch=16 if name == "digits-began" else 4) for name in CHOSEN}
    return presets | {COUPLED: smallest("dcgan-64", batch=4, r1=0.5, wgan_gp=1.0)}


def train(ranks: Ranks) -> dict[str, Tensor]:
    """Per preset: all tensors of the state after STEPS in float64, and the gradients of the first step in float32."""
    results: dict[str, Tensor] = {}
    for name, config in configs().items():
        state, step = step_of(config, torch.float64, ranks=ranks)
        numbers = iter(range(STEPS * step.batches))
        for _ in range(STEPS):
            step(lambda: batch_of(config, next(numbers), torch.float64, ranks))  # noqa: B023
        ranks.check_same(state.tensors())
        results |= {f"{name}/{f}/{k}": t.clone() for f, part in state.tensors().items() for k, t in part.items()}
        read = step.read_statistics()
        results |= {f"{name}/statistics/{key}": torch.tensor(float(v)).double() for key, v in read.items()}
        results |= {f"{name}/gradients/{key}": t for key, t in first_gradients(config, ranks).items()}
    return results


def first_gradients(config: Config, ranks: Ranks) -> dict[str, Tensor]:
    """What each player's update gets in the first step, in float32; the last one where it is updated several times.

    With learning rates of 0: where a gradient is rounding alone, Adam's first step is as long as anywhere. BEGAN's in
    float64: its energy is an absolute error, whose slope jumps where a pixel is reproduced to rounding.
    """
    dtype = torch.float64 if config.preset == "digits-began" else torch.float32
    still = {name: replace(options, lr=0.0) for name, options in config.optim.items()}
    config = replace(config, optim=still)
    state, step = step_of(config, dtype, ranks=ranks)
    found: dict[str, Tensor] = {}
    for name, player in state.players.items():

        def update(*args, name=name, player=player, apply=player.update):
            found[name] = torch.cat([p.grad.reshape(-1).clone() for p in player.params if p.grad is not None])
            apply(*args)

        player.update = update
    numbers = iter(range(step.batches))
    step(lambda: batch_of(config, next(numbers), dtype, ranks=ranks))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    two = in_ranks(2, "test_ranks_agree:train", folder, seconds=2000)
    return train(ALONE), two


@pytest.mark.timeout(2500)
@pytest.mark.parametrize("preset", [*CHOSEN, COUPLED])
def test_two_ranks_are_one(preset: str, results: tuple[dict[str, Tensor], list[dict[str, Tensor]]]) -> None:
    one, (first, second) = results
    mine = [key for key in one if key.startswith(f"{preset}/")]
    assert len(mine) > 20
    for key in mine:
        assert torch.equal(first[key], second[key]), key
        assert one[key].shape == first[key].shape
        if not one[key].is_floating_point():
            assert torch.equal(one[key], first[key]), key
    files = dict.fromkeys(key.rpartition("/")[0] for key in mine)
    for file in files:
        # Moments are those of gradients at weights that differ already.
        bound = {"gradients": 1e-5, "optimizer": 1e-8}.get(re.split(r"[/.]", file)[-1], 1e-10)
        theirs = groups_of(file, first)
        for name, ours in groups_of(file, one).items():
            error = (ours - theirs[name]).norm() / ours.norm().clamp(min=1e-30)
            assert error < bound, f"{file}: {name} differs by {error:.1e} of its norm"
    assert one[f"{preset}/counters/skipped"].sum() == 0


def groups_of(file: str, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """All floating-point numbers of a file, as one vector: of networks' weights, of one kind of moments, or one by one.

    A bias in front of a normalisation has no gradient but rounding, of which Adam makes steps of 1e-10, on one rank
    too: it has no digits of its own to compare, but is part of the player.
    """
    parts: dict[str, list[Tensor]] = {}
    for key, tensor in sorted(results.items()):  # in an order that files keep
        if key.rpartition("/")[0] == file and tensor.is_floating_point():
            name = key.rpartition("/")[2]
            kind = name.partition(".")[0] if file.endswith(".optimizer") else ""
            kind = name if file.endswith(("/statistics", "/gradients")) else kind
            parts.setdefault(kind, []).append(tensor.double().reshape(-1))
    return {kind: torch.cat(tensors) for kind, tensors in parts.items()}
