"""PNG, chunk by chunk. A damaged ancillary chunk costs itself and not the picture.

Format: PNG specification, third edition; ImageMagick's "Raw profile type" texts.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import PngImagePlugin

from ..exif import plausible_dpi, read_block
from ..stored import DAMAGED_PROFILE, DAMAGED_XMP, Stored

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD = b"XML:com.adobe.xmp"
COLOR_SIZES = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"mDCV": 24, b"cLLI": 8}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_OTHERS = (b"iCCP", b"eXIf", b"pHYs", b"acTL")  # beside texts and colours, what is looked into
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_RAW_PROFILE = b"Raw profile type "
# Keywords under which programs repeat EXIF, sizes and previews of the old picture.
_UNTRUE_TEXTS = (b"exif:", b"tiff:", b"thumb::", b"png:")
_METRES_PER_INCH = 0.0254
# Pillow, and so ComfyUI, refuses a PNG with a compressed text above the first limit, or more text than the second.
PILLOW_INFLATED = 2**20
MAX_TEXT = 2**26 - 2**20
_MAX_INFLATED = 2**26


@dataclass
class _Chunks:
    """All chunks of a file. places: (name, offset, length) of those that make up the pixels."""

    places: list[tuple[bytes, int, int]] = field(default_factory=list)
    found: dict[bytes, bytes] = field(default_factory=dict)
    texts: list[tuple[bytes, bytes]] = field(default_factory=list)
    damaged: list[bytes] = field(default_factory=list)
    has_frame_before_pixels: bool = False
    has_end: bool = False


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def insert_chunks(png: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG with more chunks right after its header."""
    place = len(SIGNATURE) + 25
    return png[:place] + b"".join(png_chunk(name, data) for name, data in chunks) + png[place:]


def read_png(file: BinaryIO) -> Stored:
    """Raises ValueError where the file has no header."""
    chunks = _walk(file)
    if not chunks.places or chunks.places[0][0] != b"IHDR" or chunks.places[0][2] != 13:
        raise ValueError("its header is missing")
    file.seek(chunks.places[0][1])
    width, height, _, color_type = struct.unpack(">IIBB", file.read(10))
    left_out: list[str] = []
    text, raw = _read_texts(chunks.texts, left_out)
    icc = raw.get("icc")
    if b"iCCP" in chunks.found:
        icc = _inflated(chunks.found[b"iCCP"].partition(b"\0")[2][1:])
        left_out += [] if icc else [DAMAGED_PROFILE]
    block = chunks.found.get(b"eXIf", raw.get("exif"))
    color = [(name, chunks.found[name]) for name in COLOR_SIZES if name in chunks.found]
    sound = [(name, data) for name, data in color if len(data) == COLOR_SIZES[name]]
    chunks.damaged += [name for name, data in color if len(data) != COLOR_SIZES[name]]
    if chunks.damaged:
        left_out.append(f"damaged PNG chunks ({', '.join(_names(chunks.damaged))})")
    return Stored(
        "PNG",
        (width, height),
        lambda: PngImagePlugin.PngImageFile(io.BytesIO(_pixels_alone(file, chunks, color_type))),
        frames=_frames(chunks),
        exif=None if block is None else read_block(block),
        icc=icc or None,
        xmp=raw.get("xmp"),
        dpi=_dpi(chunks.found.get(b"pHYs", b"")),
        text=tuple(text),
        color=tuple(sound),
        left_out=tuple(left_out),
        notes=() if chunks.has_end else ("its end is missing",),
    )


def text_chunk(keyword: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The chunk for a text in ASCII or UTF-8; other bytes are taken for Latin-1."""
    try:
        is_ascii = value.decode("utf-8").isascii()
    except UnicodeDecodeError:
        is_ascii = True
    return (b"tEXt", keyword + b"\0" + value) if is_ascii else (b"iTXt", keyword + bytes(5) + value)


def text_keyword(chunk: tuple[bytes, bytes]) -> bytes:
    return chunk[1].partition(b"\0")[0]


def text_value(chunk: tuple[bytes, bytes]) -> bytes | None:
    """The text of a chunk, decompressed; None where it is damaged or absurdly long."""
    name, data = chunk
    _, _, rest = data.partition(b"\0")
    if name == b"tEXt":
        return rest
    if name == b"zTXt":
        return _inflated(rest[1:]) if rest[:1] == b"\0" else None
    is_compressed, fields = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
    if len(rest) < 2 or len(fields) < 3:
        return None
    return _inflated(fields[2]) if is_compressed else fields[2]


def _walk(file: BinaryIO) -> _Chunks:
    chunks = _Chunks()
    offset, length = len(SIGNATURE), file.seek(0, 2)
    while offset + 8 <= length:
        file.seek(offset)
        size, name = struct.unpack(">I4s", file.read(8))
        if not name.isalpha():
            break
        start, offset = offset + 8, offset + size + 12
        if name == b"IEND":
            chunks.has_end = True
            break
        if name == b"fcTL" and not any(place[0] == b"IDAT" for place in chunks.places):
            chunks.has_frame_before_pixels = True
        if name == b"tRNS" and not _is_sound(file, name, start, size, length):
            chunks.damaged.append(name)
        elif name in _PIXELS:
            chunks.places.append((name, start, size))
        elif name in _TEXTS or name in _OTHERS or name in COLOR_SIZES:
            if not _is_sound(file, name, start, size, length):
                chunks.damaged.append(name)
                continue
            file.seek(start)
            data = file.read(size)
            if name in _TEXTS:
                chunks.texts.append((name, data))
            else:
                chunks.found.setdefault(name, data)
    return chunks


def _is_sound(file: BinaryIO, name: bytes, start: int, size: int, length: int) -> bool:
    if start + size + 4 > length:
        return False
    file.seek(start)
    checksum = zlib.crc32(file.read(size), zlib.crc32(name))
    return file.read(4) == struct.pack(">I", checksum)


def _pixels_alone(file: BinaryIO, chunks: _Chunks, color_type: int) -> bytes:
    """The file with the chunks of its pixels alone. Those that the format demands keep their checksums."""
    parts = [SIGNATURE]
    for name, start, size in chunks.places:
        file.seek(start)
        data = file.read(size)
        if name == b"tRNS":
            known = {0: len(data) >= 2, 2: len(data) >= 6, 3: 1 <= len(data) <= 256}
            if not known.get(color_type):
                continue  # it means nothing for such pixels
        checksum = file.read(4)
        is_cut = len(checksum) < 4  # whether the pixels are all there shows when they are decoded
        parts.append(png_chunk(name, data) if is_cut else struct.pack(">I", size) + name + data + checksum)
    parts.append(png_chunk(b"IEND", b""))
    return b"".join(parts)


def _frames(chunks: _Chunks) -> int:
    control = chunks.found.get(b"acTL", b"")
    count = struct.unpack(">I", control[:4])[0] if len(control) == 8 else 0
    if count == 0:
        return 1
    return count + (not chunks.has_frame_before_pixels)


def _read_texts(
    chunks: list[tuple[bytes, bytes]], left_out: list[str]
) -> tuple[list[tuple[bytes, bytes]], dict[str, bytes]]:
    """The texts to be kept, and the profiles ("exif", "xmp", "icc") that stand in texts."""
    kept: list[tuple[bytes, bytes]] = []
    raw: dict[str, bytes] = {}
    total = 0
    for chunk in chunks:
        keyword, value = text_keyword(chunk), text_value(chunk)
        if keyword == XMP_KEYWORD:
            raw["xmp"] = value or b""
            left_out += [] if value else [DAMAGED_XMP]
        elif keyword.startswith(_RAW_PROFILE):
            _read_raw_profile(keyword[len(_RAW_PROFILE) :], value, raw, left_out)
        elif keyword.lower().startswith(_UNTRUE_TEXTS):
            continue
        elif value is None or not 1 <= len(keyword) < 80:
            left_out.append(f"damaged PNG text ({keyword[:40].decode('latin-1')})")
        elif total + len(value) > MAX_TEXT:
            left_out.append(f"PNG text of over {MAX_TEXT // 2**20} MiB ({keyword.decode('latin-1')})")
        else:
            total += len(value)
            kept.append(_readable(chunk, keyword, value))
    return kept, {name: data for name, data in raw.items() if data}


def _readable(chunk: tuple[bytes, bytes], keyword: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The chunk as it is, or not compressed where Pillow would refuse the whole picture because of its length."""
    name, data = chunk
    if len(value) <= PILLOW_INFLATED or name == b"tEXt":
        return chunk
    if name == b"zTXt":
        return b"tEXt", keyword + b"\0" + value
    language, translated, _ = data[len(keyword) + 3 :].split(b"\0", 2)
    return b"iTXt", keyword + bytes(3) + language + b"\0" + translated + b"\0" + value


def _read_raw_profile(kind: bytes, value: bytes | None, raw: dict[str, bytes], left_out: list[str]) -> None:
    """A profile in hexadecimal digits, after its name and its length."""
    try:
        data = bytes.fromhex(b"".join((value or b"").split()[2:]).decode("ascii"))
    except ValueError:
        data = b""
    name = {b"app1": "exif", b"exif": "exif", b"xmp": "xmp", b"icc": "icc", b"icm": "icc"}.get(kind.lower())
    if not data:
        left_out.append(f"a damaged raw profile ({kind[:20].decode('latin-1')})")
    elif name is None:
        left_out.append({b"iptc": "IPTC data", b"8bim": "Photoshop's own data"}.get(kind.lower(), "a raw profile"))
    else:
        is_packet = name == "exif" and data.startswith(b"http://ns.adobe.com/xap/1.0/\0")
        raw.setdefault("xmp" if is_packet else name, data.partition(b"\0")[2] if is_packet else data)


def _inflated(data: bytes) -> bytes | None:
    inflate = zlib.decompressobj()
    try:
        value = inflate.decompress(data, _MAX_INFLATED)
    except zlib.error:
        return None
    return value if inflate.eof or not inflate.unconsumed_tail else None


def _dpi(data: bytes) -> tuple[float, float] | None:
    if len(data) != 9:
        return None
    x, y, unit = struct.unpack(">IIB", data)
    return plausible_dpi(x * _METRES_PER_INCH, y * _METRES_PER_INCH) if unit == 1 else None


def _names(chunks: list[bytes]) -> list[str]:
    return sorted({name.decode("ascii") for name in chunks})
