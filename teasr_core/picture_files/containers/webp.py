"""WebP, chunk by chunk.

Format: RFC 9649.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from PIL import WebPImagePlugin

from ..exif import read_block
from ..stored import Stored

_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_METADATA = (b"ICCP", b"EXIF", b"XMP ")
_ALPHA, _ANIMATION = 0x10, 0x02  # flags of VP8X that concern the pixels


def read_webp(file: BinaryIO) -> Stored:
    """Raises ValueError where the file has no picture, or where a part of its pixels is missing."""
    places: list[tuple[bytes, int, int]] = []
    found: dict[bytes, bytes] = {}
    damaged: list[str] = []
    offset, length = 12, file.seek(0, 2)
    while offset + 8 <= length:
        file.seek(offset)
        name, size = struct.unpack("<4sI", file.read(8))
        start, offset = offset + 8, offset + 8 + size + size % 2
        is_cut = start + size > length
        if name in _PIXELS:
            if is_cut:
                raise ValueError("image file is truncated")
            places.append((name, start, size))
        elif name in _METADATA and is_cut:
            damaged.append(name.decode("ascii").strip())
        elif name in _METADATA:
            found.setdefault(name, file.read(size))
    return Stored(
        "WEBP",
        _size(file, places),
        lambda: WebPImagePlugin.WebPImageFile(io.BytesIO(_pixels_alone(file, places))),
        frames=max(1, sum(name == b"ANMF" for name, _, _ in places)),
        exif=read_block(found[b"EXIF"]) if b"EXIF" in found else None,
        icc=found.get(b"ICCP") or None,
        xmp=found.get(b"XMP ") or None,
        left_out=(f"damaged WebP chunks ({', '.join(damaged)})",) if damaged else (),
    )


def _size(file: BinaryIO, places: list[tuple[bytes, int, int]]) -> tuple[int, int]:
    for name, start, _ in places:
        file.seek(start)
        head = file.read(10).ljust(10, b"\0")
        if name == b"VP8X":
            return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
        if name == b"VP8 ":
            width, height = struct.unpack("<HH", head[6:10])
            return width & 0x3FFF, height & 0x3FFF
        if name == b"VP8L":
            bits = int.from_bytes(head[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise ValueError("it holds no picture")


def _pixels_alone(file: BinaryIO, places: list[tuple[bytes, int, int]]) -> bytes:
    parts = []
    for name, start, size in places:
        file.seek(start)
        data = file.read(size)
        if name == b"VP8X" and data:
            data = bytes([data[0] & (_ALPHA | _ANIMATION)]) + data[1:]
        parts.append(name + struct.pack("<I", size) + data + b"\0" * (size % 2))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body
