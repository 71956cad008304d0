"""The whole training step: the engine against the same networks in plain PyTorch, on the same data.

Candidates (benchmarks/baselines.py): the tidy loop in both memory formats, the tutorial loop, and the tidy
loop on networks compiled by torch.compile where that works. Before anything is timed, the loops' weights are
compared with the engine's after some float64 steps.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import baselines, memory, steps
from benchmarks.baselines import Loop
from fastgan.train import Config

OURS = "fastgan"
TIDY = ["tidy loop, NCHW", "tidy loop, channels_last"]
TUTORIAL = "tutorial loop, NCHW"
COMPILED = "tidy loop with torch.compile, "

# Batch sizes on a CPU and on a GPU; None: the preset's. R3GAN takes minutes per step on a CPU.
BATCHES = {
    "dcgan-64": {"cpu": 64, "cuda": None},
    "digits": {"cpu": None, "cuda": None},
    "r3gan-32": {"cuda": None},
}


def check(config: Config, make, device: str) -> None:
    """Float64 steps of a plain loop and of the engine leave the same weights and the same averages."""
    engine = steps.Engine.of(config, device, torch.float64)
    networks = steps.Networks.of(config, device, torch.float64)
    networks.take_weights(engine)
    loop: Loop = make(networks.generator, networks.average, networks.critic, steps.recipe_of(config))
    for number in range(max(3, config.system.penalty_every + 1)):
        batch = steps.random_batch(config, number, device, torch.float64, torch.contiguous_format)
        loop(batch.images, engine.latents(batch).double())
        engine.step(lambda batch=batch: batch)
    players = engine.state.players
    for name, trained, plain in (
        ("generator", players["generator"].module, networks.generator),
        ("average", players["generator"].average, networks.average),
        ("critic", players["critic"].module, networks.critic),
    ):
        for (key, ours), theirs in zip(trained.named_parameters(), plain.parameters(), strict=True):
            error = (ours - theirs).norm() / theirs.norm().clamp(min=1)
            assert error < 1e-9, f"{name}.{key} differs by {error:.1e}"


def compiled_candidate(config: Config, device: str, layout: str) -> tuple[str, object]:
    """(name, step) of the compiled loop after two steps, or (name, reason why it does not work here)."""
    name = COMPILED + layout
    try:
        step = steps.timed(name, config, device)
        step()
        step()
    except Exception as error:  # whatever the compiler raises: the reason is part of the result
        return name, f"does not work here: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return name, step


@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", list(BATCHES))
def test_step(preset, ratio, device):
    if device not in BATCHES[preset]:
        pytest.skip(f"{preset} is too large for a {device.upper()}")
    config = steps.config_of(preset, BATCHES[preset][device])
    plain = config.system.loss == "non_saturating" and not (config.system.r1 or config.system.r2)
    small = steps.config_of(preset, 8 if plain else 2)
    check(small, baselines.tidy, device)
    if plain:
        check(small, baselines.tutorial, device)

    names = [OURS, *TIDY, *([TUTORIAL] if plain else [])]
    candidates = {name: steps.timed(name, config, device) for name in names}
    notes = {}
    compiled, step = compiled_candidate(config, device, "channels_last")
    if isinstance(step, str):
        notes[f"{preset}, {compiled}"] = step
    else:
        candidates[compiled] = step
    share = steps.overhead(config, device)
    notes[f"{preset}, engine"] = f"{share:.1%} of the step is not forward, backward or update"
    peaks = {name: memory.measured(preset, name, config.batch, device) for name in names}
    cycle = config.system.penalty_every
    what = f"{preset}, batch {config.batch}" + (f", {cycle} steps" if cycle > 1 else "")
    case = ratio("step", what, candidates, OURS, memory=peaks, notes=notes)

    # A ratio misses its goal only when the whole interval lies below it.
    assert min(case.ratio(name).high for name in TIDY) >= 1.0, "slower than the tidy loop"
    # Peaks of a CPU process vary by some percent from run to run.
    assert peaks[OURS] <= 1.05 * min(peaks[name] for name in TIDY), f"more memory than the tidy loop: {peaks}"
    if preset == "dcgan-64":
        assert case.ratio(TUTORIAL).high >= 1.1, "not 1.1x the tutorial loop"
        assert share < 0.03, f"engine overhead is {share:.1%} of the step"
