"""Small picture files as bytes, with any metadata in them, and the way through our reader and writer."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from teasr_core.picture_files.containers.png import png_chunk
from teasr_core.picture_files.picture import Picture
from teasr_core.picture_files.read import load_picture, read_size
from teasr_core.picture_files.write import save_picture

H, W = 9, 14
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WRITTEN = (".png", ".jpg", ".webp", ".tif")


def pixels(channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(channels).integers(0, 256, (H, W, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def encoded(kind: str, channels: int = 3, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(channels)).save(buffer, kind, **options)
    return buffer.getvalue()


def with_chunks(*chunks: bytes, before: bytes = b"IDAT", channels: int = 3) -> bytes:
    png = encoded("PNG", channels)
    place = png.index(before) - 4
    return png[:place] + b"".join(chunks) + png[place:]


def bad_crc(name: bytes, data: bytes) -> bytes:
    return png_chunk(name, data)[:-1] + bytes([png_chunk(name, data)[-1] ^ 1])


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place < len(png):
        size = struct.unpack(">I", png[place : place + 4])[0]
        name, data, crc = png[place + 4 : place + 8], png[place + 8 : place + 8 + size], png[place + 8 + size :][:4]
        assert crc == struct.pack(">I", zlib.crc32(name + data))
        found.append((name, data))
        place += size + 12
    return found


def load(tmp_path: Path, data: bytes, suffix: str) -> Picture:
    (tmp_path / f"in{suffix}").write_bytes(data)
    assert read_size(tmp_path / f"in{suffix}") is not None
    return load_picture(tmp_path / f"in{suffix}")


def saved(tmp_path: Path, picture: Picture, suffix: str) -> bytes:
    """What `picture` becomes, which we and Pillow can read."""
    path = tmp_path / f"out{suffix}"
    save_picture(picture, path, overwrite=True)
    again = load_picture(path)
    assert again.note is None
    assert again.rgb.shape == picture.rgb.shape
    with Image.open(path) as image:
        image.load()
    return path.read_bytes()
