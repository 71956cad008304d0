"""`fastgan bench step`: the parts of a step, their floors, and plain PyTorch beside them."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from small_presets import batch_of, narrow, step_of

from fastgan import baseline_styles, baseline_turns, trial
from fastgan.baseline import objective, plain_players, recipe_of, tidy, unfused
from fastgan.bench import Result
from fastgan.cli import main
from fastgan.contract import Draw
from fastgan.cost import Cost
from fastgan.nn import fused

NARROW = [
    *("--preset", "dcgan-64", "--batch", "4", "--device", "cpu", "--steps", "3"),
    *("--set", "system.networks.generator_width=4", "--set", "system.networks.critic_width=4"),
]


def test_bench_step_says_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    assert main(["bench", "step", *NARROW, "--against", "eager", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for text in ("images/s", "plain PyTorch, eager", "generator forward", "critic's turn: forward, backward", "update",
                 "wait for data", "of products", "of copy", "whole step", "floor ms", "peak memory",
                 "ceilings measured here", "fastgan is", "█"):  # fmt: skip
        assert text in said, text
    (case,) = Result.load_file(out / "step.json").cases
    assert set(case.seconds) == {"fastgan", "plain PyTorch, eager"}
    assert len(case.seconds["fastgan"]) == 3
    bars = [e for e in ElementTree.parse(out / "step.svg").iter() if e.tag.endswith("rect")]
    assert len(bars) == 1 + 2 * 6


def test_a_preset_at_another_size() -> None:
    assert trial._family("dcgan-128") == ("dcgan-64", 128)
    assert trial._family("r3gan-128") in (("r3gan-64", 128), ("r3gan-256", 128))
    assert [trial._family(name) for name in ("dcgan-64", "digits", "dcgam-128")] == [
        ("dcgan-64", 0), ("digits", 0), ("dcgam-128", 0)
    ]  # fmt: skip


def test_what_bench_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *NARROW, "--against", "eagre"]) == 2
    assert "did you mean 'eager'" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["pix2pix-digits", pytest.param("stylegan2-digits", marks=pytest.mark.long)])
def test_bench_knows_other_systems(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrower = ["--set", "system.networks.max_width=8"] if preset.startswith("style") else []
    given = ["bench", "step", "--preset", preset, "--batch", "4", "--device", "cpu", "--steps", "1", *narrower]
    assert main([*given, "--against", "eager", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "plain PyTorch, eager" in said
    assert "not known for" in said


@pytest.mark.parametrize("preset", ["pix2pix-digits", "digits-conditional", "cyclegan-digits"])
def test_the_plain_turns_are_those_of_the_engine(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the engine's random numbers they leave the engine's weights."""
    config = replace(narrow(preset), kimg=1e9)  # schedules stay at their starts
    given = config.system, config.shape, config.optim, config.averaging, torch.device("cpu"), torch.contiguous_format
    kept = []

    def players_of(image: Any) -> Any:
        kept.append(type(config.system).players(config.system, image))
        return kept[-1]

    _, step = step_of(config, torch.float64)
    monkeypatch.setattr(baseline_turns, "PlainDraw", lambda seed, index, _: next(draws))
    object.__setattr__(config.system, "players", players_of)
    loop = baseline_turns.plain_turns(*given, dtype=torch.float64)
    for name, player in kept[0].items():
        player.load_state_dict(step.state.modules[name].state_dict())
    ready = [batch_of(config, n, torch.float64) for n in range(2)]
    for batch in ready:
        draws = iter(Draw(step.seed, batch.index, stream=number) for number in step.phase)
        loop(batch)
        step(lambda: batch)  # noqa: B023
    for name, player in kept[0].items():
        for (key, theirs), ours in zip(player.named_parameters(), step.state.modules[name].parameters(), strict=True):
            assert (theirs - ours).norm() < 1e-9 * ours.norm().clamp(min=1), f"{name}.{key}"


def test_the_plain_stylegan2_makes_the_same_images() -> None:
    network: Any = narrow("stylegan2-digits").system.players(narrow("stylegan2-digits").shape)["generator"].double()
    network.synthesis.layers[1].strength.data.fill_(0.3)
    w = torch.randn(2, network.synthesis.styles, 12, dtype=torch.float64)
    noise = torch.randn(2, network.synthesis.noise_numbers, dtype=torch.float64)
    ours, theirs = network.synthesis(w, noise), baseline_styles.synthesis(network, w, noise)
    assert (ours - theirs).norm() < 1e-10 * theirs.norm()


def test_the_parts_add_up_and_the_step_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "cycle_cost", lambda config: {})  # counting takes time of its own
    config = narrow("r3gan-32")
    _, step = step_of(config)
    ready = [batch_of(config, n) for n in range(12)]
    step(lambda: ready.pop())

    def slow() -> object:
        time.sleep(0.02)
        return ready.pop()

    turns, updates = step.turns, [vars(p).get("update") for p in step.state.players.values()]
    began = time.perf_counter()
    parts = trial.parts_of(config, step, slow, 4)  # type: ignore[arg-type]
    whole = time.perf_counter() - began
    seconds = {part.name: part.seconds for part in parts}
    assert 0.02 <= seconds["wait for data"] < 0.04
    assert sum(seconds.values()) * 4 == pytest.approx(whole, rel=0.1)
    assert all(value >= 0 for value in seconds.values())
    assert step.turns is turns
    assert [vars(p).get("update") for p in step.state.players.values()] == updates
    assert not step.state.players["generator"].module._forward_hooks


def test_a_bar_is_as_long_as_its_time_and_its_floor() -> None:
    parts = [trial.Part("a", 0.2, Cost(1e9, 0.0)), trial.Part("b", 0.1, Cost(0.0, 4e8)), trial.Part("c", 0.05)]
    rows = ElementTree.fromstring(trial.bars("title", parts, 1e10, 1e9))
    widths = [float(e.attrib["width"]) for e in list(rows)[1:] if e.tag.endswith("rect")]
    assert [w / widths[0] for w in widths] == pytest.approx([1, 0.5, 0.5, 2, 0.25, 0], abs=0.01)
    labels = {e.text: float(e.attrib["x"]) for e in rows if e.tag.endswith("text")}
    assert labels["100.0"] > labels["200.0"] > labels["50.0"], "behind the longer of both"
    line = trial.table(parts, 1e10, 1e9, 0.4).splitlines()[1]
    assert line.split() == ["a", "200.00", "1.00", "0.0", "50%", "0%", "100.00", "50%"]


def test_the_plain_loop_takes_the_critics_gradients_from_a_function() -> None:
    """What torch.compile is given as one graph: the same step as by backward()."""
    config = narrow("wgan-gp-64", critic_steps=2)
    recipe = recipe_of(config.system, config.optim["critic"], config.averaging, config.batch)
    first = [network.double() for network in plain_players(config.system, config.shape)]
    second = [copy.deepcopy(network) for network in first]

    def gradients(*given: Any) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(objective(second[2], recipe, *given), list(second[2].parameters()))

    loops = tidy(*first, recipe), tidy(*second, recipe, gradients)
    images, latents = torch.randn(8, 3, 64, 64, dtype=torch.float64), torch.randn(8, 128, dtype=torch.float64)
    for loop in loops:
        for _ in range(2):
            loop(images, latents, torch.full((8,), 0.3, dtype=torch.float64))
    for one, other in zip(first, second, strict=True):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_the_baseline_has_no_layers_of_ours() -> None:
    config = narrow("dcgan-64")
    with unfused():
        plain = config.system.players(config.shape)["generator"]
    assert type(plain).__module__ == "fastgan.models.dcgan"
    assert not any(record.fused for record in fused(plain))
    assert any(record.fused for record in fused(config.system.players(config.shape)["generator"]))
