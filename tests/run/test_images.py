"""Pictures: exact pixels, the right places in a grid, files that are whole."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.errors import FastganError
from fastgan.run.images import BETWEEN, grid, save_animation, save_png, to_uint8


def test_every_level_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    images = (levels.float() / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(images).flatten(), levels)
    assert torch.equal(to_uint8(images.double()).flatten(), levels)


def test_values_are_rounded_clipped_and_never_undefined():
    values = [-1.0, 1.0, -7.0, 7.0, float("nan"), float("inf"), float("-inf"), 100.6 / 127.5 - 1]
    pixels = to_uint8(torch.tensor(values).view(1, 1, 1, -1)).flatten().tolist()
    assert pixels == [0, 255, 0, 255, 0, 255, 0, 101]


def test_channels_go_last_whatever_the_strides():
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last).bfloat16() * 2 - 1
    pixels = to_uint8(images)
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels.is_contiguous()
    assert torch.equal(pixels, to_uint8(images.contiguous()))
    assert pixels[1, 2, 3, 0] == round(float(images[1, 0, 2, 3].float() * 127.5 + 127.5))


def test_images_are_laid_out_row_by_row():
    images = torch.randint(0, 256, (5, 6, 7, 3), dtype=torch.uint8)
    sheet = np.asarray(grid(images, columns=2, cell=0, gap=1)).copy()
    assert sheet.shape == (3 * 7 - 1, 2 * 8 - 1, 3)
    for n in range(5):
        top, left = 7 * (n // 2), 8 * (n % 2)
        assert np.array_equal(sheet[top : top + 6, left : left + 7], images[n].numpy())
        sheet[top : top + 6, left : left + 7] = BETWEEN
    assert (sheet == BETWEEN).all()


def test_a_grid_is_nearly_square_and_gray_stays_gray():
    sheet = grid(torch.zeros(10, 1, 64, 64))
    assert sheet.mode == "L"
    assert sheet.size == (4 * 66 - 2, 3 * 66 - 2)
    assert grid(torch.zeros(1, 1, 64, 64)).size == (64, 64)
    assert sheet.getpixel((0, 0)) == 128


ENLARGED = [(32, 64, 2), (8, 64, 8), (48, 64, 2), (64, 64, 1), (32, 0, 1)]


@pytest.mark.parametrize(("size", "cell", "factor"), ENLARGED)
def test_small_images_are_enlarged_by_whole_pixels(size, cell, factor):
    images = torch.randint(0, 256, (1, size, size, 1), dtype=torch.uint8)
    sheet = np.asarray(grid(images, cell=cell))
    assert np.array_equal(sheet, np.kron(images[0, :, :, 0].numpy(), np.ones((factor, factor), np.uint8)))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((0, 3, 8, 8), torch.float32),
        ((4, 2, 8, 8), torch.float32),
        ((8, 8), torch.float32),
        ((8, 8), torch.uint8),
        ((4, 8, 8, 3), torch.int64),
    ],
)
def test_what_cannot_be_shown_is_said(shape, dtype):
    with pytest.raises(FastganError, match="expected one or more images"):
        grid(torch.zeros(shape, dtype=dtype))


def test_png_is_exact_and_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "fakes.png"
    first = grid(torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8))
    save_png(first, path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(first))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FastganError, match=r"cannot write .*fakes.png: no space left on device"):
        save_png(grid(torch.zeros(1, 1, 8, 8)), path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(first))
    assert list(tmp_path.iterdir()) == [path]


def test_animation_has_every_frame_at_the_right_speed(tmp_path):
    levels = torch.tensor([0, 60, 120, 180, 240], dtype=torch.uint8)
    frames = levels[:, None, None, None].expand(5, 32, 32, 1)
    path = save_animation(frames, tmp_path / "walk.webp", fps=20)
    with Image.open(path) as film:
        assert film.size == (256, 256)
        assert film.n_frames == 5
        for number, level in enumerate(levels.tolist()):
            film.seek(number)
            assert abs(int(np.asarray(film.convert("L"))[100, 100]) - level) <= 3
            assert film.info["duration"] == 50
        assert film.info["loop"] == 0


@pytest.mark.parametrize(("name", "fps", "message"), [("a.mp4", 10, "ends in"), ("a.webp", 0, "more than 0")])
def test_bad_animation_requests_are_said(tmp_path, name, fps, message):
    with pytest.raises(FastganError, match=message):
        save_animation(torch.zeros(2, 1, 8, 8), tmp_path / name, fps=fps)
