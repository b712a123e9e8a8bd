"""TIFF and BigTIFF: of the first page's directory, Pillow gets what describes its pixels, and we read the rest.

Format: TIFF 6.0, BigTIFF.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from PIL import Image, TiffImagePlugin, TiffTags

from ..exif import DAMAGED, read_tags
from ..ifd import Directory, TiffReader, Tree, encode_tree
from ..stored import Stored

_WIDTH, _HEIGHT, _SUBFILE, _XMP, _ICC = 256, 257, 254, 700, 34675
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
    pages = reader.pages(lambda tag: tag == _SUBFILE)
    exif = read_tags(reader)
    is_damaged = DAMAGED in exif.notes or not page.is_whole
    icc, xmp = page.entries.get(_ICC), page.entries.get(_XMP)
    return Stored(
        "TIFF",
        (size[0], size[1]),
        lambda: _TiffPixels(io.BytesIO(_pixels_alone(file, reader, page))),
        frames=1 + sum(not _number(other, _SUBFILE) & (_REDUCED | _MASK) for other in pages),
        exif=exif,
        icc=icc.data if icc else None,
        xmp=xmp.data if xmp else None,
        dpi=exif.dpi(default_unit=2),
        left_out=("damaged TIFF entries",) if is_damaged and DAMAGED not in exif.notes else (),
    )


def _number(page: Directory, tag: int) -> int:
    entry = page.entries.get(tag)
    numbers = entry.numbers() if entry else []
    return int(numbers[0]) if numbers else 0


def _pixels_alone(file: BinaryIO, reader: TiffReader, page: Directory) -> bytes:
    """The whole file with a directory of its own behind it, which describes the pixels and nothing else."""
    entries = {
        tag: entry.first() if entry.count > 1 and TiffTags.lookup(tag).length == 1 else entry
        for tag, entry in page.entries.items()
        if tag in _PIXELS
    }
    start = reader.length + reader.length % 2
    file.seek(0)
    data = bytearray(file.read())
    data += bytes(start - len(data)) + encode_tree(Tree(entries), reader.order, start, reader.is_big)
    struct.pack_into(f"{reader.order}{'Q' if reader.is_big else 'I'}", data, 8 if reader.is_big else 4, start)
    return bytes(data)
