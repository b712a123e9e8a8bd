"""JPEG, segment by segment. One that lacks nothing but its end marker is read.

Formats: ITU-T T.81, JFIF 1.02, EXIF 3.0, ICC.1 (annex B), XMP part 3, CIPA DC-007 (several pictures in one file).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin

from ..exif import PREFIX, plausible_dpi, read_block
from ..ifd import TiffReader
from ..stored import DAMAGED_PROFILE, FURTHER_PICTURES, PixelsNotReadError, Stored
from .png import text_chunk

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _COM, _APP0, _APP1, _APP2, _APP13, _APP14 = 0xDA, 0xFE, 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xCA)
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a segment
_XMP, _LONG_XMP, _ICC = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0", b"ICC_PROFILE\0"
_IPTC = b"8BIM\x04\x04"
_MPF, _MP_ENTRIES = b"MPF\0", 0xB002  # the index of several pictures, and its list of 16 bytes a picture
_PREVIEW = 0x0100  # the class of previews in that list
NO_END = "the end of the JPEG is missing, its pixels are all there"
# What may stand where the end is missing; if all pixels are there already, it changes none. The tails differ in their
# first bits, because some code ends a block at once, and go on behind every restart marker. None holds 0xFF as data.
_NOISE = np.random.default_rng(0).integers(0, 255, (8, 64), dtype=np.uint8)
_RESTARTS = b"".join(bytes((0xFF, 0xD0 + k)) + _NOISE[k].tobytes() for k in range(8))
_TAILS = (b"", *(bytes((32 * k + 11,)) + _NOISE[k].tobytes() + _RESTARTS for k in range(8)), _RESTARTS)


@dataclass
class _Segments:
    """The segments before the pixels. kept: those that decoding needs, as bytes. start: where the first scan is."""

    kept: list[bytes] = field(default_factory=list)
    apps: list[tuple[int, bytes]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    start: int = 0


def read_jpeg(file: BinaryIO) -> Stored:
    """Raises ValueError where there is no picture."""
    segments = _walk(file)
    left_out: list[str] = []
    exif = b"".join(data[len(PREFIX) :] for code, data in segments.apps if code == _APP1 and data.startswith(PREFIX))
    xmp = next((data[len(_XMP) :] for code, data in segments.apps if code == _APP1 and data.startswith(_XMP)), None)
    if any(data.startswith(_LONG_XMP) for _, data in segments.apps):
        left_out.append("the extension of the XMP")
    if any(code == _APP13 and _IPTC in data for code, data in segments.apps):
        left_out.append("IPTC data")
    if any(_tells_of_further_pictures(data) for code, data in segments.apps if code == _APP2):
        left_out.append(FURTHER_PICTURES)
    comments = [data.rstrip(b"\0") for code, data in segments.apps if code == _COM]
    return Stored(
        "JPEG",
        segments.size,
        lambda: _open(file, segments),
        exif=read_block(exif),
        icc=_profile(segments.apps, left_out),
        xmp=xmp or None,
        dpi=_dpi(segments.apps),
        text=tuple(text_chunk(b"Comment", comment) for comment in comments if comment and b"\0" not in comment),
        left_out=tuple(left_out),
    )


def load_without_end(stored: Stored) -> Image.Image | None:
    """The loaded picture of a JPEG that Pillow calls truncated, if it lacks nothing but its end; None if pixels lack.

    A decoder that meets the end too early makes up the rest. Whatever is put before the end must therefore change
    nothing, and the scans that are there must hold all coefficients.
    """
    first: Image.Image | None = None
    for tail in _TAILS:
        image = stored.open_image()
        assert isinstance(image, JpegImagePlugin.JpegImageFile) and image.fp is not None
        data = image.fp.getvalue().rstrip(b"\xff")  # type: ignore[attr-defined]  # a BytesIO of ours
        if first is None and not _has_all_scans(data):
            return None
        try:
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(data + tail + _EOI))
            image.load()
        except OSError:
            return None
        if first is not None and image.tobytes() != first.tobytes():
            return None
        first = first or image
    return first


def _walk(file: BinaryIO) -> _Segments:
    segments = _Segments()
    length = file.seek(0, 2)
    offset = 2
    while (found := _next_marker(file, offset, length)) is not None:
        code, offset = found
        if code in _ALONE:
            continue
        file.seek(offset)
        size = int.from_bytes(file.read(2), "big")
        data = file.read(max(0, size - 2))
        if code == _SOS:
            segments.start = offset - 2
            break
        offset += max(2, size)
        if code in _FRAMES and len(data) >= 5 and segments.size == (0, 0):
            precision, height, width = struct.unpack(">BHH", data[:5])
            segments.size = (width, height)
            if precision != 8:
                raise PixelsNotReadError(f"is a JPEG of {precision} bits a sample; expected 8; convert it to PNG first")
        if code == _COM or _APP0 <= code <= 0xEF:
            segments.apps.append((code, data))
            # The colours depend on JFIF and on Adobe's marker.
            if not (code == _APP0 and data.startswith(b"JFIF\0") and len(data) >= 14) and not (
                code == _APP14 and len(data) >= 12
            ):
                continue
        segments.kept.append(bytes((0xFF, code)) + struct.pack(">H", size) + data)
    if not segments.start or 0 in segments.size:
        raise ValueError("it holds no picture")
    return segments


def _next_marker(file: BinaryIO, offset: int, length: int) -> tuple[int, int] | None:
    """(code, place after it) of the next marker; what stands before it is skipped, as decoders do."""
    while offset + 4 <= length:
        file.seek(offset)
        block = file.read(4096)
        place = block.find(b"\xff")
        if place < 0:
            offset += len(block)
            continue
        offset += place + 1
        file.seek(offset)
        code = file.read(1)
        if code in (b"\xff", b"\0", b""):
            continue
        return code[0], offset + 1
    return None


def _open(file: BinaryIO, segments: _Segments) -> JpegImagePlugin.JpegImageFile:
    file.seek(segments.start)
    return JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join((_SOI, *segments.kept, file.read()))))


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG without further metadata hold every component, a progressive one to the last bit."""
    file, offset = io.BytesIO(data), 2
    wanted: set[tuple[int, int]] = set()  # (component, coefficient), those of the lowest bit
    is_progressive = False
    while (found := _next_marker(file, offset, len(data))) is not None:
        code, offset = found
        if code in _ALONE:
            continue
        file.seek(offset)
        segment = file.read(int.from_bytes(file.read(2), "big") - 2)
        offset += 2 + len(segment)
        if code in _FRAMES and len(segment) >= 6:
            is_progressive = code in _PROGRESSIVE
            components = segment[6::3][: segment[5]]
            wanted = {(component, k) for component in components for k in (range(64) if is_progressive else (0,))}
        elif code == _SOS and len(segment) >= 4:
            count = segment[0]
            first, last, bits = segment[1 + 2 * count :][:3] if is_progressive else (0, 0, 0)
            if bits & 15 == 0:
                wanted -= {(component, k) for component in segment[1::2][:count] for k in range(first, last + 1)}
    return not wanted


def _tells_of_further_pictures(segment: bytes) -> bool:
    """Whether a segment is the index of a file with several pictures, previews of the first one aside (CIPA DC-007)."""
    if not segment.startswith(_MPF):
        return False
    try:
        reader = TiffReader(io.BytesIO(segment[len(_MPF) :]))
        entry = reader.directory(reader.first_offset).entries.get(_MP_ENTRIES)
    except ValueError:
        return False
    rows = b"" if entry is None else entry.data
    types = [
        attribute & 0xFFFFFF for attribute, _ in struct.iter_unpack(f"{reader.order}I12s", rows[: len(rows) // 16 * 16])
    ]
    return any(kind >> 8 != _PREVIEW for kind in types[1:])


def _profile(apps: list[tuple[int, bytes]], left_out: list[str]) -> bytes | None:
    """The colour profile from its numbered parts."""
    parts = [data[len(_ICC) :] for code, data in apps if code == _APP2 and data.startswith(_ICC)]
    if not parts:
        return None
    numbered = {part[0]: part[2:] for part in parts if len(part) >= 2}
    if sorted(numbered) != list(range(1, len(numbered) + 1)) or any(
        part[1:2] != bytes((len(numbered),)) for part in parts
    ):
        left_out.append(DAMAGED_PROFILE)
        return None
    return b"".join(numbered[number] for number in sorted(numbered)) or None


def _dpi(apps: list[tuple[int, bytes]]) -> tuple[float, float] | None:
    """The resolution of JFIF, where it is one."""
    for code, data in apps:
        if code == _APP0 and data.startswith(b"JFIF\0") and len(data) >= 12:
            unit, x, y = struct.unpack(">BHH", data[7:12])
            per_inch = {1: 1.0, 2: 2.54}.get(unit)
            return None if per_inch is None else plausible_dpi(x * per_inch, y * per_inch)
    return None
