"""Presets, TOML and overrides: what they set, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgan.config import PRESETS, from_mapping, override, parse_set, resolve, to_mapping, to_toml
from fastgan.errors import FastganError
from fastgan.schedule import Schedule


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_toml_round_trip(name: str, tmp_path: Path) -> None:
    penalised = ["system.r1={start=2, end=0.5}"] if hasattr(PRESETS[name].system, "r1") else []
    config = resolve(name, sets=["optim.critic.lr=3e-4", 'out="a \\"quoted\\" name"', *penalised])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert resolve(file=path) == config
    mapping = to_mapping(config)
    assert from_mapping(mapping.pop("preset"), mapping) == config


def test_issue_presets_exist() -> None:
    wanted = {"digits", "dcgan-64", "wgan-gp-64", "sngan-32", "r3gan-32", "r3gan-64", "r3gan-256"}
    assert wanted <= set(PRESETS)
    assert all(PRESETS[name].preset == name for name in PRESETS)


def test_precedence_is_preset_file_flags_sets(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('preset = "wgan-gp-64"\nbatch = 7\nseed = 5\nkimg = 2\n')
    config = resolve(None, path, {"seed": 6, "kimg": 3.0}, ["kimg=4"])
    assert (config.preset, config.batch, config.seed, config.kimg) == ("wgan-gp-64", 7, 6, 4.0)
    assert resolve("digits", path).preset == "digits"


def test_values_are_read_as_toml_or_text() -> None:
    assert parse_set("a.b=1e-4") == ("a.b", 1e-4)
    assert parse_set("a=true") == ("a", True)
    assert parse_set("data.path=/some/where") == ("data.path", "/some/where")
    assert parse_set("a=x=y") == ("a", "x=y")
    assert override(PRESETS["digits"], "data.path", 2024).data.path == "2024"


def test_schedules_can_be_set_and_unset() -> None:
    config = override(PRESETS["digits"], "system.r1", {"start": 2.0, "end": 1, "shape": "linear"})
    assert config.system.r1 == Schedule(2.0, 1.0, shape="linear")  # type: ignore[attr-defined]
    assert override(config, "system.r1", 3).system.r1 == 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.critc.lr=1", ["optim.critc", "did you mean 'critic'"]),
        ("sistem.latent=1", ["'sistem'", "'system'"]),
        ("system.latent=1.5", ["system.latent", "int", "1.5"]),
        ("system.latent=true", ["system.latent", "int", "True"]),
        ("system.latent=-3", ["latent", "1 or more", "-3"]),
        ("system.r1=-1", ["r1", "0 or more", "-1"]),
        ("system.loss=hing", ["hing", "did you mean 'hinge'"]),
        ("optim.critic=3", ["optim.critic", "group", "optim.critic.kind"]),
        ("optim.critic.lr=fast", ["optim.critic.lr", "float", "'fast'"]),
        ("optim.critic.lr=nan", ["optim.critic.lr", "nan"]),
        ("optim.critic.beta1=1", ["beta1", "[0, 1)"]),
        ("optim.critic.kind=adem", ["'adem'", "'adam'"]),
        ("system.r1={start=1}", ["system.r1", "end"]),
        ("system.r1={start=1,end=2,stop=3}", ["system.r1.stop"]),
        ("system.r1={start=1,end=2,shape='cosin'}", ["system.r1", "'cosine'"]),
        ("batch=0", ["batch", "more than 0"]),
        ("kimg=-1", ["kimg", "-1"]),
        ("seed=-1", ["seed", "-1"]),
        ("output.keep=0", ["keep", "1 or more"]),
        ("batch", ["--set 'batch'", "key=value"]),
        ("preset=digits", ["'preset'"]),
    ],
)
def test_mistakes_are_named(change: str, words: list[str]) -> None:
    with pytest.raises(FastganError) as caught:
        resolve("digits", sets=[change])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_preset_and_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FastganError, match="did you mean 'digits'"):
        resolve("digit")
    with pytest.raises(FastganError, match="does not exist"):
        resolve(file=tmp_path / "no.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("a = [")
    with pytest.raises(FastganError, match="is not TOML"):
        resolve(file=bad)
    bad.write_text('preset = ["x"]')
    with pytest.raises(FastganError, match="is unknown"):
        resolve(file=bad)


def test_values_that_belong_together_are_checked_together() -> None:
    config = resolve("r3gan-32", sets=["system.networks.widths=[64,64,64,64]", "system.networks.blocks=[1,1,1,1]"])
    assert config.system.networks.widths == (64, 64, 64, 64)  # type: ignore[attr-defined]
