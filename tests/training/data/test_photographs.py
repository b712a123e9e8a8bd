"""The trainer reads pictures as `upscale` does: upright, 16 bits rounded to 8, alpha on grey, hidden files left out."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from teasr_core.picture_files.picture import Picture
from teasr_core.picture_files.read import load_picture, read_rgb
from teasr_core.picture_files.write import save_picture
from training.config.shared import DataConfig
from training.config.toml import read_toml
from training.data.dataset import CropDataset
from training.data.photographs import images_by_stem, list_source, scan_photographs
from training.data.sources import open_sources

TURNED = 6  # EXIF: the picture is shown a quarter turn clockwise
CROP = 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def texture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save_turned(path, pixels):
    """Store `pixels` a quarter turn off, with the EXIF orientation that turns them back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_turned_picture_is_read_upright_and_its_size_is_the_upright_one(tmp_path, suffix):
    pixels = texture(70, 50)
    path = save_turned(tmp_path / f"a.{suffix}", pixels)
    assert np.array_equal(read_rgb(path), pixels)
    assert scan_photographs([path]).sizes == ((50, 70),)
    _, hq = CropDataset(DataConfig((str(tmp_path),), cache_mb=20), CROP, seed=0)[0]  # a turned TIFF is no damage
    assert hq.shape == (3, CROP, CROP)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_16_bits_become_the_nearest_8(tmp_path, suffix):
    levels = torch.arange(0, 65536, 16, dtype=torch.float32).reshape(1, 1, 64, 64) / 65535
    save_picture(Picture(levels.expand(1, 3, 64, 64).contiguous(), bit_depth=16), tmp_path / f"a.{suffix}")
    wanted = (levels[0, 0].double().numpy() * 255 + 0.5).astype(np.uint8)
    found = read_rgb(tmp_path / f"a.{suffix}")
    assert np.array_equal(found[..., 1], wanted) and len(np.unique(found)) == 256


def test_what_is_transparent_becomes_grey_and_not_what_lies_under_it(tmp_path):
    rgba = np.dstack([texture(20, 30), np.full((20, 30), 255, np.uint8)])
    rgba[:10] = (255, 0, 0, 0)  # invisible red
    rgba[10:12, :, 3] = 51  # one fifth visible
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = read_rgb(tmp_path / "a.png").astype(int)
    assert (found[:10] == 128).all()
    assert np.abs(found[10:12] - (0.2 * rgba[10:12, :, :3] + 0.8 * 127.5)).max() <= 0.51
    assert np.array_equal(found[12:], rgba[12:, :, :3])


def test_hidden_files_are_left_out(tmp_path):
    for name in ("a.jpg", ".hidden.jpg", "._a.jpg"):
        Image.fromarray(texture(60, 60)).save(tmp_path / name)
    assert [path.name for path in list_source(str(tmp_path))] == ["a.jpg"]
    assert list(images_by_stem(tmp_path)) == ["a"]
    (source,) = open_sources(DataConfig((str(tmp_path),)), CROP)
    assert (source.count, source.skipped) == (1, ())


def test_pairs_are_compared_upright(tmp_path):
    """HR is stored turned, LR is not: upright, HR is four times LR."""
    hr, lr = texture(96, 64, 1), texture(24, 16, 2)
    save_turned(tmp_path / "test_HR" / "a.jpg", hr)
    (tmp_path / "test_LR").mkdir()
    Image.fromarray(lr).save(tmp_path / "test_LR" / "a.png")
    (source,) = open_sources(DataConfig(pairs=(str(tmp_path),)), CROP)
    assert (len(source.high), source.skipped) == (1, ())
    lq, hq = CropDataset(DataConfig(pairs=(str(tmp_path),), cache_mb=20), CROP, seed=0)[0]
    assert lq.shape == hq.shape == (3, CROP, CROP)


def test_a_byte_order_mark_is_no_part_of_a_list_or_a_config(tmp_path):
    Image.fromarray(texture(60, 60)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_bytes(BYTE_ORDER_MARK + b"a.png\n")
    assert list_source(str(tmp_path / "list.txt")) == [tmp_path / "a.png"]
    (tmp_path / "config.toml").write_bytes(BYTE_ORDER_MARK + b"[run]\nseed = 3\n")
    assert read_toml(tmp_path / "config.toml") == {"run": {"seed": 3}}


def test_the_pixels_are_those_that_upscale_reads(tmp_path):
    pixels = texture(40, 56)
    for name, image in (("grey.png", pixels[..., 0]), ("colour.webp", pixels), ("cmyk.jpg", None)):
        picture = Image.fromarray(pixels).convert("CMYK") if image is None else Image.fromarray(image)
        picture.save(tmp_path / name)
        wanted = (load_picture(tmp_path / name).rgb[0].permute(1, 2, 0).numpy() * 255).round()
        assert np.array_equal(read_rgb(tmp_path / name), wanted)
