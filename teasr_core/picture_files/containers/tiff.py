"""TIFF and BigTIFF: of the first page's directory, Pillow gets what describes its pixels, and we read the rest.

Format: TIFF 6.0, BigTIFF.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from PIL import Image, TiffImagePlugin, TiffTags

from ..exif import DAMAGED, read_tags
from ..ifd import LONG, Directory, Entry, TiffReader, Tree, encode_tree, entry_of
from ..stored import PixelsNotReadError, Stored

_WIDTH, _HEIGHT, _SUBFILE, _XMP, _ICC = 256, 257, 254, 700, 34675
_BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR, _SAMPLE_FORMAT = 258, 259, 277, 278, 284, 339
_STRIPS, _TILES = (273, 279), (324, 325)  # where the pieces lie and how many bytes each has
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_JPEGS = (6, 7)  # as values of the compression
_BYTE_STRINGS = (333, 347)  # the names of inks and the tables of JPEG, which Pillow's table calls single values
_SAMPLE_NAMES = {1: "whole", 2: "signed", 3: "floating-point"}
# How the pixels are stored. Without the orientation (274), so that no version of Pillow turns them; without 305.
_PIXELS = frozenset((*range(255, 260), 262, 263, 264, 265, 266, 273, *range(277, 282), 284, 292, 293, 317, 320))
_PIXELS |= frozenset(
    (*range(322, 326), 332, 333, 334, *range(338, 344), 347, *range(512, 522), *range(529, 533), 50674)
)
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType: a preview or a mask, no page


class _TiffPixels(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF without its warning in the middle of decoding; the size of the picture was checked before."""

    def load_prepare(self) -> None:
        width, height = getattr(self, "_tile_size", self.size)
        if width * height > 4 * self.size[0] * self.size[1] + 2**24:
            raise ValueError("its tiles are far larger than the picture")
        if self._im is None:
            self.im = Image.core.new(self.mode, (width, height))
        super().load_prepare()


def read_tiff(file: BinaryIO) -> Stored:
    """Raises ValueError where the file has no directory or tells no size."""
    reader = TiffReader(file)
    page = reader.directory(reader.first_offset, lambda tag: tag in _PIXELS or tag in (_XMP, _ICC))
    size = tuple(_number(page, tag) for tag in (_WIDTH, _HEIGHT))
    if min(size) < 1:
        raise ValueError("it tells no size")
    if _is_cut(page, reader.length):
        raise ValueError("its end is missing, and pixels with it")
    pages = reader.pages(lambda tag: tag == _SUBFILE)
    exif = read_tags(reader)
    is_damaged = DAMAGED in exif.notes or not page.is_whole
    icc, xmp = page.entries.get(_ICC), page.entries.get(_XMP)
    return Stored(
        "TIFF",
        (size[0], size[1]),
        lambda: _open(_pixels_alone(file, reader, page), page),
        frames=1 + sum(not _number(other, _SUBFILE) & (_REDUCED | _MASK) for other in pages),
        exif=exif,
        icc=icc.data if icc else None,
        xmp=xmp.data if xmp else None,
        dpi=exif.dpi(default_unit=2),
        left_out=("damaged TIFF entries",) if is_damaged and DAMAGED not in exif.notes else (),
    )


def _open(data: bytes, page: Directory) -> _TiffPixels:
    """Raises PixelsNotReadError for a kind of pixels that Pillow does not know."""
    try:
        return _TiffPixels(io.BytesIO(data))
    except SyntaxError as error:
        if str(error) != "unknown pixel mode" or not page.is_whole:
            raise
        bits, samples = _number(page, _BITS, 1), _number(page, _SAMPLES, 1)
        kind = _SAMPLE_NAMES.get(_number(page, _SAMPLE_FORMAT, 1), "unknown")
        raise PixelsNotReadError(
            f"has {samples} x {bits}-bit {kind} samples a pixel, which are not read here; expected 8 or 16-bit RGB or "
            "grey; convert it first"
        ) from None


def _numbers(page: Directory, tag: int) -> list[int]:
    entry = page.entries.get(tag)
    return [int(number) for number in entry.numbers()] if entry else []


def _number(page: Directory, tag: int, default: int = 0) -> int:
    return next(iter(_numbers(page, tag)), default)


def _is_cut(page: Directory, length: int) -> bool:
    """Whether pixels should lie past the end of the file, where `_pixels_alone` puts something else.

    Of pixels that are not compressed Pillow reads as many bytes as they take; the file may name too many. The bytes of
    compressed ones are limited to the file (`_counts_in_file`), and the decoder says whether they are enough; only
    JPEG's makes up what is missing.
    """
    at, size = _TILES if _TILES[0] in page.entries else _STRIPS
    offsets, counts = _numbers(page, at), _numbers(page, size)
    compression = _number(page, _COMPRESSION, 1)
    if compression == 1:
        sizes = _plain_sizes(page, len(offsets))
        counts = [min(pair) for pair in zip(counts, sizes, strict=True)] if len(counts) == len(sizes) else sizes
    elif compression not in _JPEGS:
        counts = [1] * len(offsets)
    return any(offset + count > length for offset, count in zip(offsets, counts, strict=False))


def _counts_in_file(page: Directory, length: int) -> dict[int, Entry]:
    """The byte counts of compressed strips and tiles, none reaching past the end of the file. By their tag."""
    found = {}
    for at, size in (_STRIPS, _TILES):
        offsets, counts = _numbers(page, at), _numbers(page, size)
        if _number(page, _COMPRESSION, 1) != 1 and len(offsets) == len(counts) > 0:
            left = [min(count, length - offset) for offset, count in zip(offsets, counts, strict=True)]
            found |= {size: entry_of(LONG, *left)} if left != counts else {}
    return found


def _plain_sizes(page: Directory, pieces: int) -> list[int]:
    """The bytes of each strip or tile that is not compressed."""
    bits, samples = _numbers(page, _BITS) or [1], _number(page, _SAMPLES, 1)
    pixel = bits[0] if _number(page, _PLANAR) == 2 else sum(bits) if len(bits) == samples else bits[0] * samples
    if _TILES[0] in page.entries:
        return [-(-_number(page, _TILE_WIDTH) * pixel // 8) * _number(page, _TILE_HEIGHT)] * pieces
    row, height = -(-_number(page, _WIDTH) * pixel // 8), _number(page, _HEIGHT)
    rows = min(_number(page, _ROWS) or height, height)
    strips = -(-height // rows)  # of one plane
    return [row * min(rows, height - rows * (piece % strips)) for piece in range(pieces)]


def _pixels_alone(file: BinaryIO, reader: TiffReader, page: Directory) -> bytes:
    """The whole file with a directory of its own behind it, which describes the pixels and nothing else."""
    entries = {
        tag: entry.first()
        if entry.count > 1 and tag not in _BYTE_STRINGS and TiffTags.lookup(tag).length == 1
        else entry
        for tag, entry in page.entries.items()
        if tag in _PIXELS
    } | _counts_in_file(page, reader.length)
    start = reader.length + reader.length % 2
    file.seek(0)
    data = bytearray(file.read())
    data += bytes(start - len(data)) + encode_tree(Tree(entries), reader.order, start, reader.is_big)
    struct.pack_into(f"{reader.order}{'Q' if reader.is_big else 'I'}", data, 8 if reader.is_big else 4, start)
    return bytes(data)
