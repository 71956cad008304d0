"""A StyleGAN2 run from the command line: exact resume, truncation, ways between styles, export, and error lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastgan import bench
from fastgan.cli import main
from fastgan.run import folder

NARROW = {
    "generator_width": 2,
    "critic_width": 2,
    "max_width": 4,
    "style": 6,
    "mapping_layers": 1,
    "minibatch_std": 2,
}
SMALL = [
    *(f"--set=system.networks.{name}={value}" for name, value in NARROW.items()),
    "--set=system.latent=4",
    "--set=system.r1_every=2",
    "--set=system.path_every=3",
    "--set=output.grid_images=4",
    "--batch=4",
]


def train(out: Path, kimg: float) -> None:
    """To `kimg`, with constant learning rates: those of the preset depend on the length of the run."""
    arguments = ["train", "--preset", "stylegan2-digits", "--device", "cpu", "--out", str(out), *SMALL]
    assert main([*arguments, f"--kimg={kimg}", "--set=optim.generator.lr=0.002", "--set=optim.critic.lr=0.002"]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps, in one go."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, 0.02)
    return out


def test_resume_is_exact(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "parts", 0.012)
    train(tmp_path / "parts", 0.02)
    whole, parts = (folder.load(out, print) for out in (run, tmp_path / "parts"))
    assert whole.state["counters"] == parts.state["counters"] == {"step": 5, "samples": 20}
    for file, tensors in whole.tensors.items():
        for name, tensor in tensors.items():
            assert (tensor == parts.tensors[file][name]).all(), f"{file}: {name}"
    assert whole.tensors["generator"]["path_mean"] > 0
    assert whole.tensors["generator"]["style_mean"].abs().sum() > 0


def test_samples_with_truncation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for truncation in ("0", "0.7"):
        assert main(["sample", str(run), "--seeds", "0-3", "--truncation", truncation, "--device", "cpu"]) == 0
    mean = Image.open(run / "samples-0-3-truncation-0.png")
    assert Image.open(run / "samples-0-3-truncation-0.7.png").size == mean.size
    cells = [mean.crop((x, y, x + 64, y + 64)).tobytes() for x in (0, 66) for y in (0, 66)]
    assert mean.size == (130, 130)
    assert len(set(cells)) == 1  # the mean style makes one picture
    assert "4 pictures" in capsys.readouterr().out


def test_the_way_between_styles(run: Path) -> None:
    assert main(["interpolate", str(run), "--seeds", "0-1", "--frames", "3", "--space", "w", "--device", "cpu"]) == 0
    assert main(["interpolate", str(run), "--seeds", "0-1", "--frames", "3", "--device", "cpu"]) == 0
    straight, round_ = (Image.open(run / f"interpolation-0-1{end}.png") for end in ("-w", ""))
    assert straight.size == round_.size
    assert straight.tobytes() != round_.tobytes()


@pytest.mark.long
def test_export(run: Path) -> None:
    import fastgan

    assert main(["export", str(run)]) == 0
    images = fastgan.Generator.from_pretrained(run / "export").sample(range(2))
    assert images.shape == (2, 1, 32, 32)


def test_lines_for_what_cannot_be(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "--truncation", "5"]) == 2
    assert "truncation must be from -2 to 2 (1: none, 0: the mean), got 5.0" in capsys.readouterr().err


def test_a_run_without_styles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plain"
    assert main(["train", "--preset", "digits", "--kimg", "0.064", "--device", "cpu", "--out", str(out)]) == 0
    assert main(["sample", str(out), "--truncation", "0.7", "--device", "cpu"]) == 2
    assert "--truncation 0.7: preset digits has no styles" in capsys.readouterr().err
    assert main(["interpolate", str(out), "--space", "w", "--device", "cpu"]) == 2
    assert "--space w: preset digits has no styles" in capsys.readouterr().err


def test_the_bench_says_what_it_does_not_know(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "copy_rate", lambda device: 1e10)
    monkeypatch.setattr(bench, "matmul_rate", lambda device: 1e11)
    narrow = [argument.removeprefix("--set=") for argument in SMALL if argument.startswith("--set=")]
    arguments = ["bench", "step", "--preset", "stylegan2-digits", "--batch", "2", "--steps", "1", "--device", "cpu"]
    arguments += [f"--set={argument}" for argument in narrow]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "operations, bytes and floor: not known for StyleBasedGAN" in out
    assert "path's turn" in out
