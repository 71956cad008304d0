"""translate, upscale and inpaint: pictures of one's own through a run, tiles without seams, one line for errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_presets import batch_of, narrow, step_of

from fastgan import cli
from fastgan.gans import SuperResolution
from fastgan.models import SRResNet
from fastgan.pictures import evaluating
from fastgan.transformed import tiled

COMMON = ["--batch", "8", "--kimg", "0.016", "--device", "cpu", "--set", "output.grid_images=4"]
SMALL = {
    "pix2pix-digits": ["--set", "system.generator.width=4", "--set", "system.critic.width=4"],
    "srgan-digits": ["--set", "system.generator.width=4", "--set", "system.critic.width=4"],
    "cyclegan-digits": ["--set", "system.generator.width=4", "--set", "system.critic.width=4"],
    "inpaint-digits": ["--set", "system.generator.width=4", "--set", "system.critic.width=4"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    for preset, sets in SMALL.items():
        assert cli.main(["train", "--preset", preset, "--out", str(folder / preset), *COMMON, *sets]) == 0
    return {preset: folder / preset for preset in SMALL}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of several sizes, one of them in a folder of its own and one in colour."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (16, 16), "b.png": (23, 41), "inside/a.png": (16, 16, 3)}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_next_commands_are_those_of_the_system(runs: dict[str, Path]) -> None:
    words = {preset: (run / "next.txt").read_text() for preset, run in runs.items()}
    assert f"fastgan translate {runs['pix2pix-digits']} " in words["pix2pix-digits"]
    assert f"fastgan translate {runs['cyclegan-digits']} " in words["cyclegan-digits"]
    assert f"fastgan upscale {runs['srgan-digits']} " in words["srgan-digits"]
    assert f"fastgan inpaint {runs['inpaint-digits']} " in words["inpaint-digits"]
    assert not any("fastgan sample" in text or "interpolate" in text for text in words.values())


def test_translate(runs: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["translate", str(runs["pix2pix-digits"]), str(pictures), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "inside-a.png", "sheet.png"]
    assert size_of(out / "b.png") == (16, 16)
    said = capsys.readouterr().out
    assert "3 pictures" in said
    assert "source | translated" in said
    assert cli.main(["translate", str(runs["cyclegan-digits"]), str(pictures / "a.png"), "--out", str(out / "x")]) == 0
    assert (
        cli.main(
            ["translate", str(runs["cyclegan-digits"]), str(pictures / "a.png"), "--back", "--out", str(out / "y")]
        )
        == 0
    )
    there, back = ((out / name / "a.png").read_bytes() for name in "xy")
    assert there != back


def test_upscale_any_size(runs: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    args = ["upscale", str(runs["srgan-digits"]), str(pictures), "--tile", "16"]
    assert cli.main([*args, "--out", str(tmp_path)]) == 0
    assert size_of(tmp_path / "b.png") == (4 * 41, 4 * 23)
    assert (tmp_path / "sheet.png").exists()


def test_inpaint_keeps_what_is_known(runs: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    hole = np.zeros((16, 16), np.uint8)
    hole[4:9, 2:12] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    original = np.asarray(Image.open(pictures / "a.png"))
    made = []
    for mask in ("box", "free", str(tmp_path / "mask.png")):
        out = tmp_path / Path(mask).stem
        args = ["inpaint", str(runs["inpaint-digits"]), str(pictures / "a.png"), "--mask", mask, "--out", str(out)]
        assert cli.main(args) == 0
        assert (out / "sheet.png").exists()
        made.append(np.asarray(Image.open(out / "a.png")))
    changed = made[2] != original
    assert changed[4:9, 2:12].mean() > 0.5
    assert not changed[hole == 0].any()
    assert not np.array_equal(made[0], made[1])


def test_what_is_wrong_is_one_line(
    runs: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, side, level in (("large", 32, 255), ("small", 8, 255), ("none", 16, 0)):
        Image.fromarray(np.full((side, side), level, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "empty").mkdir()
    pix2pix, srgan, inpaint = (str(runs[f"{name}-digits"]) for name in ("pix2pix", "srgan", "inpaint"))
    cases = [
        (
            ["inpaint", inpaint, str(pictures), "--mask", str(tmp_path / "large.png")],
            "larger than the run's images: 32x32",
        ),
        (["inpaint", inpaint, str(pictures), "--mask", str(tmp_path / "small.png")], "of another size than the run's"),
        (["inpaint", inpaint, str(pictures), "--mask", str(tmp_path / "none.png")], "has no hole"),
        (["inpaint", inpaint, str(pictures), "--mask", "boxes"], "No such file"),
        (["translate", pix2pix, str(tmp_path / "nowhere")], "No such file"),
        (["translate", pix2pix, str(tmp_path / "empty")], "no PNG, JPEG or WebP images"),
        (["translate", pix2pix, str(pictures), "--back"], "one direction"),
        (["translate", srgan, str(pictures)], "use fastgan upscale"),
        (["upscale", pix2pix, str(pictures)], "use fastgan translate"),
        (["upscale", srgan, str(pictures), "--tile", "4"], "--tile must be 8"),
        (["sample", srgan], "makes images from images"),
        (["export", inpaint], "not one whose generator is a function of z, or of an image, alone"),
        (
            ["train", "--preset", "srgan-digits", "--out", str(tmp_path / "x"), "--set", "data.size=18"],
            "does not divide",
        ),
        (["train", "--preset", "pix2pix-64", "--data", "digits", "--out", str(tmp_path / "x")], "holds no pairs"),
        (
            ["train", "--preset", "pix2pix-64", "--data", str(pictures), "--set", "data.pairs=", "--out", "x"],
            "data.pairs",
        ),
    ]
    capsys.readouterr()
    for args, message in cases:
        assert cli.main(args) == 2, args
        said = capsys.readouterr().err
        assert message in said, (args, said)
        assert said.count("\n") == 1, said


@pytest.mark.parametrize(("scale", "residual", "blocks"), [(2, True, 1), (4, True, 2), (4, False, 1), (8, False, 1)])
def test_tiles_are_the_whole(scale: int, residual: bool, blocks: int) -> None:
    """By the margin that the network says, and not by one that is much smaller."""
    generator = torch.Generator().manual_seed(0)
    network = SRResNet(width=4, blocks=blocks, kernel=5, residual=residual)
    system = SuperResolution(network, scale=scale)
    torch.manual_seed(0)
    upscaler = network.upscaler(1, scale)
    with torch.no_grad():
        for parameter in upscaler.parameters():  # the last convolution is zero at the start
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    players = {"generator": upscaler}
    image = torch.rand(1, 1, 37, 52, generator=generator) * 2 - 1
    with evaluating(players):
        whole = system.upscale(players, image)
        assert (tiled(system, players, image, tile=8) - whole).abs().max() < 1e-5
        assert (whole.abs() < 1).float().mean() > 0.3  # not all of it clipped
        near = type("Near", (), {"scale": scale, "margin": 1, "upscale": staticmethod(system.upscale)})()
        assert (tiled(near, players, image, tile=8) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("preset", list(SMALL))
def test_a_run_goes_on_exactly(preset: str) -> None:
    """Two steps, saved and restored into a fresh state, and two more: the same bits as four."""
    config = narrow(preset, batch=4)
    whole, step = step_of(config)
    for number in range(4):
        step(lambda: batch_of(config, number))  # noqa: B023
    first, step = step_of(config)
    for number in range(2):
        step(lambda: batch_of(config, number))  # noqa: B023
    tensors = {file: {key: t.clone() for key, t in part.items()} for file, part in first.tensors().items()}
    second, step = step_of(replace(config, seed=1))
    step.seed = config.seed
    second.restore(tensors, first.counters())
    for number in range(2, 4):
        step(lambda: batch_of(config, number))  # noqa: B023
    for file, part in whole.tensors().items():
        for key, tensor in part.items():
            assert torch.equal(second.tensors()[file][key], tensor), f"{file}: {key}"


def test_the_image_buffer_shows_old_images_and_is_part_of_the_checkpoint() -> None:
    config = narrow("cyclegan-digits", batch=4, buffer=8)
    state, step = step_of(config)
    for number in range(6):
        step(lambda: batch_of(config, number))  # noqa: B023
    saved = state.tensors()["critic"]
    assert saved["buffer.places"].shape == (8, 16, 16, 1)
    assert 4 < float(saved["buffer.used"].sum()) <= 8
    from fastgan.contract import Draw

    buffer = state.players["critic"].module.buffer
    new = torch.full((4, 1, 16, 16), 3.0)
    shown = torch.cat([buffer.exchange(new, Draw(0, torch.arange(4) + 4 * i, 0)) for i in range(50)])
    old = (shown != 3.0).flatten(1).any(1)
    assert 0 < int(old.sum()) <= 8  # what was stored before has been shown, each once
    assert torch.equal(buffer.places, torch.full_like(buffer.places, 3.0))
