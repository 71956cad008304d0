"""From the command line: pictures of a class that one asks for, latents of images, and what is said where none go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.cli import main
from fastgan.data import DataOptions, open_images
from fastgan.errors import FastganError
from fastgan.pictures import columns_of, picture_batch, pictured
from fastgan.run import folder
from fastgan.trained import parse_labels

QUICK = ["--kimg", "0.13", "--batch", "32", "--device", "cpu", "--set", "data.size=16"]


def test_labels_by_name_and_by_number() -> None:
    assert parse_labels("cat, 0,dog", ("cat", "dog"), 2) == [0, 0, 1]
    assert parse_labels("7,007", ("007", "7"), 2) == [1, 0]  # a name comes before a number
    assert parse_labels("1,2", (), 3) == [1, 2]  # a checkpoint without its run folder
    for text, names, words in (
        ("dgo", ("cat", "dog"), "'dgo' is no class of this run; did you mean 'dog'"),
        ("3", (), "it has classes 0 to 2"),
        ("-1", (), "'-1' is no class"),
    ):
        with pytest.raises(FastganError, match=words):
            parse_labels(text, names, 3)


def test_a_column_of_a_grid_is_a_class() -> None:
    assert columns_of(64) == 8
    assert columns_of(64, 10) == 10
    assert columns_of(64, 2) == 8
    assert columns_of(100, 7) == 7
    assert columns_of(64, 1000) == 8


def test_pictures_show_each_class_in_turn() -> None:
    images = open_images(DataOptions(path="photos", size=32))
    assert images.labels is not None
    assert images.labels[pictured(images, range(21))].tolist() == 3 * list(range(7))
    assert len(set(pictured(images, range(700)).tolist())) == 700
    batch = picture_batch(images, [7, 8], torch.device("cpu"))
    assert batch.labels is not None
    assert (batch.labels.tolist(), batch.index.tolist()) == ([0, 1], [7, 8])


def test_samples_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--preset", "digits-conditional", "--out", str(out), *QUICK]) == 0
    assert folder.class_names(out) == tuple("0123456789")
    assert json.loads((out / "about.json").read_text())["classes"] == list("0123456789")
    assert main(["sample", str(out), "--labels", "3,7", "--seeds", "0-7"]) == 0
    with Image.open(out / "samples-0-7-labels-3,7.png") as sheet:
        assert sheet.size == (4 * 66 - 2 if columns_of(8, 2) == 4 else 2 * 66 - 2, sheet.height)
    assert main(["interpolate", str(out), "--labels", "3", "--seeds", "0,1", "--frames", "2"]) == 0
    assert (out / "interpolation-0,1-labels-3.webp").exists()
    assert main(["sample", str(out), "--labels", "12"]) == 2
    assert "--labels '12': '12' is no class of this run" in capsys.readouterr().err
    assert main(["encode", str(out), "digits"]) == 2
    assert "preset digits-conditional has no encoder" in capsys.readouterr().err


def test_codes_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, codes = tmp_path / "run", tmp_path / "codes.npz"
    assert main(["train", "--preset", "digits-bigan", "--out", str(out), *QUICK]) == 0
    capsys.readouterr()
    assert main(["encode", str(out), "digits", "--out", str(codes)]) == 0
    assert "1,797 images" in capsys.readouterr().out
    with np.load(codes) as found:
        assert found["codes"].shape == (1797, 32)
        assert found["labels"][:5].tolist() == [0, 1, 2, 3, 4]
        assert found["error"].min() > 0
    with Image.open(codes.with_suffix(".png")) as sheet:
        assert sheet.size == (16 * 66 - 2, 8 * 66 - 2)
    assert main(["encode", str(out), "digits", "--out", str(tmp_path / "codes.csv")]) == 2
    assert "give it a name that ends in .npz" in capsys.readouterr().err
    assert main(["sample", str(out), "--labels", "3"]) == 2
    assert "preset digits-bigan knows no classes" in capsys.readouterr().err


def test_a_conditional_system_on_images_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for preset in ("digits-conditional", "digits-auxiliary"):
        command = ["train", "--preset", preset, "--data", str(tmp_path), "--out", str(tmp_path / "run"), *QUICK]
        assert main([*command, "--batch", "2"]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            "needs labels, and these images have none: give --data a folder with a folder of images per class" in said
        )
