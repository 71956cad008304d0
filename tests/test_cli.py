"""The command line: help, dry run, pictures, status."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import cli, trained
from fastgan.cli import actions
from fastgan.kernels import _runtime

ROOT = Path(__file__).parent.parent
TINY = [
    "--preset",
    "digits",
    "--batch",
    "16",
    "--kimg",
    "0.032",
    "--device",
    "cpu",
    "--set",
    "data.size=16",
    "--set",
    "system.networks.generator_width=4",
    "--set",
    "system.networks.generator_layers=[16]",
    "--set",
    "system.latent=8",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", "--out", str(out), *TINY, "--kimg", "0.8", "--set", "optim.generator.lr=0.01"]) == 0
    return out


@pytest.mark.parametrize("command", ["", "train", "sample", "interpolate", "eval", "export", "doctor", "bench"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code in (0, None)
    text = capsys.readouterr().out
    assert "usage: fastgan" in text
    for word in {
        "": ["train", "sample", "interpolate", "eval", "export", "doctor", "bench"],
        "train": [
            "--data",
            "--preset",
            "--out",
            "--kimg",
            "--batch",
            "--seed",
            "--init",
            "--config",
            "--set",
            "--dry-run",
            "--resume",
            "--device",
            "--workers",
        ],
    }.get(command, []):
        assert word in text


def test_training_prints_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", "--out", str(out), *TINY]) == 0
    text = capsys.readouterr().out
    for word in (
        "1,797",
        "native",
        "images/s",
        "fakes-000000032.png",
        "report.html",
        f"fastgan sample {out}",
    ):
        assert word in text, text


def test_dry_run_says_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in (
        "[optim.critic]",
        "latent = 8",
        "1,797",
        "generator:",
        "parameters",
        "adam_ema",
        "one step on cpu",
        "critic.loss",
    ):
        assert word in text, text
    assert list(tmp_path.iterdir()) == []


def test_samples_depend_on_their_seed_alone(run: Path, tmp_path: Path) -> None:
    for name, seeds in (("a", "3-6"), ("b", "6,5,4,3")):
        args = [
            "sample",
            str(run),
            "--seeds",
            seeds,
            "--out",
            str(tmp_path / f"{name}.png"),
            "--singles",
            str(tmp_path / name),
        ]
        assert cli.main(args) == 0
    assert (tmp_path / "a.png").exists()
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [f"seed-{s:06}.png" for s in (3, 4, 5, 6)]
    pictures = []
    for name in names:
        one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in "ab")
        assert one.shape == (16, 16)
        assert np.array_equal(one, other)
        pictures.append(one)
    assert not np.array_equal(pictures[0], pictures[1])
    assert cli.main(["sample", str(run), "--seeds", "0-3"]) == 0
    assert (run / "samples-0-3.png").exists()


def test_live_weights_differ_from_averaged(run: Path, tmp_path: Path) -> None:
    for weights in ("live", "average"):
        args = ["sample", str(run), "--weights", weights, "--out", str(tmp_path / f"{weights}.png")]
        assert cli.main(args) == 0
    assert (tmp_path / "live.png").read_bytes() != (tmp_path / "average.png").read_bytes()


def test_interpolation(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.webp"
    assert cli.main(["interpolate", str(run), "--seeds", "1,2,9", "--frames", "5", "--out", str(out)]) == 0
    with Image.open(out) as film:
        assert film.n_frames == 15  # type: ignore[attr-defined]
    assert (tmp_path / "x.png").exists()


MISTAKES = {
    "sample runs/x --counts 8": "unknown option --counts; see fastgan sample --help",
    "train --prset digits": "unknown option --prset; did you mean --preset? See fastgan train --help",
    "eval x --metric fid": "unknown option --metric; did you mean --metrics? See fastgan eval --help",
    "pack a b --sise 64": "unknown option --sise; did you mean --size? See fastgan pack --help",
    "pack a b --size x": "--size: expected INT, got 'x'; see fastgan pack --help",
    "train --kimg abc": "--kimg: expected FLOAT, got 'abc'; see fastgan train --help",
    "trian": "unknown command trian; did you mean 'train'?",
    "doctor extra": "unexpected extra; see fastgan doctor --help",
    "pack digits x": "pack: digits comes with fastgan and needs no pack: fastgan train --data digits",
    "bench stp": "invalid choice 'stp' for argument 'what'. Expected one of ('step',); see fastgan bench --help",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_what_was_mistyped_and_what_was_meant(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed.split()) == 2
    out, said = capsys.readouterr()
    assert said.startswith(f"fastgan: {MISTAKES[typed]}")
    assert said.count("\n") == 1
    assert not out


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: object) -> int:
        warnings.warn("slower than it\n  could be", RuntimeWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(actions, "run", warn)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().err == "fastgan: warning: slower than it could be\n"


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "adam_ema", "counter_noise"):
        assert word in text


def test_doctor_verify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "gpus", lambda: [])
    assert cli.main(["doctor", "--verify"]) == 0
    assert "nothing to verify: no CUDA device" in capsys.readouterr().out
    for outcome, status in (("passed", 0), ("skipped", 0), ("failed", 1)):
        verdicts = [_runtime.Verdict("masked_act", "cuda:0", outcome, "why")]
        monkeypatch.setattr(_runtime, "gpus", lambda: ["cuda:0"])
        monkeypatch.setattr(_runtime, "verify_ops", lambda checks, devices, verdicts=verdicts: verdicts)
        assert cli.main(["doctor", "--verify"]) == status
        assert f"masked_act on cuda:0: {outcome} (why)" in capsys.readouterr().out


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [a for a in TINY if a not in ("--kimg", "0.032")]
    assert cli.main(["bench", *sets, "--steps", "2"]) == 0
    text = capsys.readouterr().out
    for word in ("images/s", "peak memory", "GB/s", "GFLOP/s"):
        assert word in text


def test_seeds() -> None:
    assert trained.parse_seeds("0-3,7, 9-9") == [0, 1, 2, 3, 7, 9]


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    code = (
        "import fastgan.cli as c, fastgan.cli.actions as a; a.run_doctor = lambda _: 1 / 0; "
        "raise SystemExit(c.main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
