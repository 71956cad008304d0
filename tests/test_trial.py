"""`fastgan bench step`: the parts of a step, their floors, and plain PyTorch beside them."""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from small_presets import batch_of, narrow, step_of

from fastgan import trial
from fastgan.baseline import unfused
from fastgan.cli import main
from fastgan.nn import fused

NARROW = [
    *("--preset", "dcgan-64", "--batch", "4", "--device", "cpu", "--steps", "3"),
    *("--set", "system.networks.generator_width=4", "--set", "system.networks.critic_width=4"),
]


def test_bench_step_says_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "parts.svg"
    assert main(["bench", "step", *NARROW, "--against", "eager", "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    for text in ("images/s", "plain PyTorch, eager", "generator forward", "critic's turn", "update", "wait for data",
                 "whole step", "floor ms", "peak memory", "ceilings measured here", "fastgan is"):  # fmt: skip
        assert text in said, text
    bars = [e for e in ElementTree.parse(plot).iter() if e.tag.endswith("rect")]
    assert len(bars) == 1 + 2 * 6


def test_what_bench_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *NARROW, "--against", "eagre"]) == 2
    assert "did you mean 'eager'" in capsys.readouterr().err


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


def test_the_baseline_has_no_layers_of_ours() -> None:
    config = narrow("dcgan-64")
    with unfused():
        plain = config.system.players(config.shape)["generator"]
    assert type(plain).__module__ == "fastgan.models.dcgan"
    assert not any(record.fused for record in fused(plain))
    assert any(record.fused for record in fused(config.system.players(config.shape)["generator"]))
