"""Image files that cannot be read or written: one line of error each, and nothing left on the disk."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from teasr_core.errors import InputError, OutputError
from teasr_core.picture_files.find import find_images
from teasr_core.picture_files.picture import Picture
from teasr_core.picture_files.read import load_picture
from teasr_core.picture_files.write import check_output, save_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _picture(channels: int, depth: int = 8, **extra) -> Picture:
    """Noise; channels 1 grey, 3 RGB, 4 RGB and alpha."""
    planes = torch.rand(1, channels, 13, 18, generator=torch.Generator().manual_seed(channels))
    alpha = planes[:, 3:].contiguous() if channels == 4 else None
    rgb = planes[:, :3].expand(-1, 3, -1, -1).contiguous()
    return Picture(rgb, alpha, depth, is_grey=channels == 1, **extra)


def test_output_checks_come_before_any_work(tmp_path):
    (tmp_path / "old.png").write_bytes(b"precious")
    (tmp_path / "folder.png").mkdir()
    cases = [
        ("a.bmp", "\\.png \\.jpg"),
        ("a", "ends in nothing"),
        ("a.jpg", "JPEG has no alpha"),
        ("old.png", "exists already"),
        ("folder.png", "is a folder"),
        ("missing/a.png", "make it first"),
    ]
    before = sorted(os.listdir(tmp_path))
    for name, text in cases:
        for call in (
            lambda name=name: check_output(tmp_path / name, has_alpha=True),
            lambda name=name: save_picture(_picture(4), tmp_path / name),
        ):
            with pytest.raises(InputError, match=text) as caught:
                call()
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="16383"):
        check_output(tmp_path / "a.webp", False, size=(20000, 10))
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "old.png").read_bytes() == b"precious"
    check_output(tmp_path / "old.png", has_alpha=True, overwrite=True)
    save_picture(_picture(4), tmp_path / "old.png", overwrite=True)
    assert load_picture(tmp_path / "old.png").alpha is not None


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_picture(_picture(3), path)
    old = path.read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        save_picture(_picture(1), path, overwrite=True)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == old


def test_bad_pictures_are_not_saved(tmp_path):
    picture = _picture(3)
    picture.rgb[0, 1, 2, 3] = float("nan")
    with pytest.raises(OutputError, match="NaN"):
        save_picture(picture, tmp_path / "a.png")
    with pytest.raises(InputError, match="quality"):
        save_picture(_picture(3), tmp_path / "a.jpg", quality=0)
    for name, depth in (("a.png", 8), ("a.png", 16), ("a.jpg", 8)):
        with pytest.raises(InputError, match="cannot hold"):
            save_picture(_picture(3, depth, dpi=(1e300, 1e300)), tmp_path / name)
    grey_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    with pytest.raises(InputError, match="grey colour profile"):
        save_picture(_picture(1, icc=grey_profile), tmp_path / "a.webp")
    assert os.listdir(tmp_path) == []


def _whole_files() -> dict[str, bytes]:
    files = {}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF"), ("a.bmp", "BMP")):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        files[name] = buffer.getvalue()
    return files


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp", "deep.png", "deep.tif"])
def test_every_truncation_is_refused(tmp_path, name):
    if name.startswith("deep"):
        save_picture(_picture(4, 16), tmp_path / "whole.tmp.png")
        save_picture(_picture(4, 16), tmp_path / name, overwrite=True)
        data = (tmp_path / name).read_bytes()
    else:
        data = _whole_files()[name]
    path = tmp_path / name
    for part in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InputError) as caught:
            load_picture(path)
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        assert "expected" in message
    path.write_bytes(data)
    load_picture(path)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_bad_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image\n" * 50)
    (tmp_path / "folder.png").mkdir()
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"x"))
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (10, 200)]
    for name in ("moving.png", "moving.webp", "pages.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.gif")
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.ones((8, 8), dtype=np.int32)).save(tmp_path / "int.tif")
    cases = {
        "missing.png": "does not exist",
        "folder.png": "is a folder",
        "empty.png": "an empty file",
        "text.png": "not an image",
        "bomb.png": "megapixels",
        "moving.png": "2 frames",
        "moving.webp": "2 frames",
        "pages.tif": "2 frames or pages",
        "moving.gif": "is a GIF; expected a still picture",
        "float.tif": "bits per sample",
        "int.tif": "bits per sample",
    }
    for name, text in cases.items():
        with pytest.raises(InputError, match=text) as caught:
            load_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "expected" in str(caught.value)


def test_a_jpeg_of_12_bits_is_not_called_damaged(tmp_path):
    data = _whole_files()["a.jpg"]
    place = data.index(b"\xff\xc0") + 4  # the precision in the header of the frame
    (tmp_path / "a.jpg").write_bytes(data[:place] + b"\x0c" + data[place + 1 :])
    with pytest.raises(InputError, match="JPEG of 12 bits a sample; expected 8; convert"):
        load_picture(tmp_path / "a.jpg")


def test_a_jpeg_with_a_short_jfif_header_is_read(tmp_path):
    data = _whole_files()["a.jpg"]
    (tmp_path / "a.jpg").write_bytes(data)
    whole = load_picture(tmp_path / "a.jpg").rgb
    assert data[2:4] == b"\xff\xe0"
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe0\0\x07JFIF\0" + data[20:])
    assert torch.equal(load_picture(tmp_path / "a.jpg").rgb, whole)


def test_find_images_is_sorted_flat_and_skips_the_rest(tmp_path):
    for name in ("b.png", "a.JPG", "c.tiff", "notes.txt", ".hidden.png", "z.webp"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.JPG", "b.png", "c.tiff", "z.webp"]
    with pytest.raises(InputError, match="not a folder"):
        find_images(tmp_path / "a.JPG")
