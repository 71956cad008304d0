"""An exported generator makes the run's pictures: without the trainer, without fastgan, without pickle."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from small_presets import narrow

import fastgan
from fastgan import export as exporting
from fastgan import trained
from fastgan.cli import main
from fastgan.errors import FastganError
from fastgan.generator import Generator
from fastgan.pictures import picture_latents, sample_images
from fastgan.trained import load_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--preset", "digits", "--kimg", "0.2", "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert main(["export", str(run)]) == 0
    return run / "export"


def small(preset: str) -> tuple[Generator, object]:
    config = narrow(preset)
    torch.manual_seed(0)
    network = config.system.players(config.shape)["generator"]
    s = config.system
    for _ in range(2):
        network.train()(torch.randn(4, s.latent))  # statistics that are not their first values
    return Generator(network, s.networks, config.shape, s.latent, s.latent_distribution), s


def test_pictures_are_those_of_the_run(run: Path, exported: Path) -> None:
    config, players, device = load_run(run, True, "cpu", print)
    expected = sample_images(config.system, players, picture_latents(config.system, [3, 1, 4], device))
    assert torch.equal(fastgan.Generator.from_pretrained(exported).sample([3, 1, 4]), expected)
    assert sorted(p.name for p in exported.iterdir()) == ["config.json", "generator.pt2", "generator.safetensors"]


def test_neither_the_trainer_nor_pickle_is_needed(exported: Path) -> None:
    code = (
        "import sys, pickle\n"
        "import fastgan, torch\n"
        "fastgan.Generator\n"
        "def no(*a, **k): raise SystemExit('pickle')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = no\n"
        f"images = fastgan.Generator.from_pretrained({str(exported)!r}).sample(range(2))\n"
        "assert images.shape == (2, 1, 32, 32)\n"
        "rooms = ('train', 'step', 'data', 'run', 'cli', 'config', 'presets', 'optim')\n"
        "bad = [m for m in sys.modules if m.startswith(tuple(f'fastgan.{r}' for r in rooms)) or m in ('tyro', 'PIL')]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_runs_where_fastgan_is_not_installed(exported: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(exported)
    torch.save({"z": generator.latents(range(3)), "images": generator.sample(range(3))}, tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules['fastgan'] = None\n"
        "import torch\n"
        f"program = torch.export.load({str(exported / 'generator.pt2')!r}).module()\n"
        f"given = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "out = program(given['z']).clamp(-1, 1)\n"
        "error = (out - given['images']).norm() / given['images'].norm()\n"
        "sys.exit(f'{error}' if not error < 1e-5 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("preset", ["dcgan-64", "sngan-32", "r3gan-32"])
def test_every_family_goes_there_and_back(preset: str, tmp_path: Path) -> None:
    generator, _ = small(preset)
    said: list[str] = []
    with torch.no_grad():
        exporting.export(generator, lambda z: generator.network(z).clamp(-1, 1), tmp_path, onnx=False, say=said.append)
    assert len(said) == 2
    again = Generator.from_pretrained(tmp_path)
    assert torch.equal(again.sample(range(5)), generator.sample(range(5)))
    assert torch.equal(again.sample([4]), generator.sample(range(5), batch=1)[4:])
    assert again.sample([]).shape == (0, 3, generator.image.size, generator.image.size)


@pytest.mark.parametrize("preset", ["pix2pix-digits", "srgan-digits", "cyclegan-digits"])
def test_networks_from_images_to_images(preset: str, tmp_path: Path) -> None:
    """Both formats make the run's pictures of sources; of super-resolution those of any size."""
    config = narrow(preset)
    torch.manual_seed(0)
    players = {name: player.eval() for name, player in config.system.players(config.shape).items()}
    for parameter in players["generator"].parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    made, engine = trained._translator(config, players)
    said: list[str] = []
    exporting.export(made, engine, tmp_path, onnx=False, say=said.append)
    assert len(said) == 2
    again, program = (
        fastgan.Translator.from_pretrained(tmp_path),
        torch.export.load(tmp_path / "generator.pt2").module(),
    )
    size = 24 if made.scale > 1 else config.shape.size
    sources = torch.rand(3, made.channels, size, size) * 2 - 1
    assert torch.equal(again(sources, batch=3), engine(sources))
    assert again(sources).shape == (3, config.shape.channels, size * made.scale, size * made.scale)
    torch.testing.assert_close(program(sources).clamp(-1, 1), again(sources), rtol=1e-4, atol=1e-5)
    with pytest.raises(FastganError, match=r"expected sources \[N, 1, "):
        again(sources[:, :, :5] if made.scale == 1 else sources[:, :0])
    with pytest.raises(FastganError, match=r"open it with fastgan.Translator"):
        Generator.from_pretrained(tmp_path)


def test_what_cannot_be_exported() -> None:
    for preset in ("inpaint-digits", "digits-conditional"):
        with pytest.raises(FastganError, match="is not one whose generator is a function of z, or of an image, alone"):
            trained._generator(narrow(preset), {})


def test_a_format_that_makes_other_pictures_is_refused_and_removed(tmp_path: Path) -> None:
    generator, _ = small("dcgan-64")
    wrong = mock.patch.object(
        exporting, "_by_torch_export", lambda g, path: lambda z: (path.touch(), g.network(z + 1e-3))[1]
    )
    with (
        pytest.raises(FastganError, match=r"generator.pt2 would make other pictures than the run: relative error"),
        wrong,
    ):
        exporting.export(generator, lambda z: generator.network(z).clamp(-1, 1), tmp_path, onnx=False, say=print)
    assert not (tmp_path / "generator.pt2").exists()


def test_onnx(tmp_path: Path) -> None:
    generator, _ = small("dcgan-64")
    for package in exporting.ONNX_PACKAGES:
        pytest.importorskip(package)
    said: list[str] = []
    exporting.export(generator, lambda z: generator.network(z).clamp(-1, 1), tmp_path, onnx=True, say=said.append)
    assert "generator.onnx" in said[-1]


def test_onnx_that_is_not_installed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.dict(sys.modules, {"onnx": None}):
        assert main(["export", str(run), "--onnx"]) == 2
    assert "pip install 'fastgan[export]'" in capsys.readouterr().err


def test_what_is_no_export(exported: Path, tmp_path: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(FastganError) as error:
            Generator.from_pretrained(tmp_path)
        assert text in str(error.value)
        assert "\n" not in str(error.value)

    refused("No such file")
    (tmp_path / "config.json").write_text("{")
    refused("is not JSON")
    (tmp_path / "config.json").write_text("[]")
    refused("format 1")
    options = json.loads((exported / "config.json").read_text())
    for key, value, text in [
        ("family", "dens", "did you mean 'dense'"),
        ("networks", {"depth": 3}, "does not describe a generator"),
        ("size", 48, "got size 48"),
        ("latent", 8, "cannot be read as safetensors"),
        ("distribution", "gauss", "'gauss' is unknown"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(options | {key: value}))
        refused(text)
    (tmp_path / "config.json").write_text(json.dumps(options | {"latent": 8}))
    (tmp_path / "generator.safetensors").write_bytes((exported / "generator.safetensors").read_bytes())
    refused("weights of another network")
    (tmp_path / "generator.safetensors").write_bytes(pickle.dumps({}))
    refused("cannot be read as safetensors")
