"""BMP, which says nothing about its picture but a resolution."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import BmpImagePlugin

from ..exif import plausible_dpi
from ..stored import Stored

_LONGEST_HEADER = 2**16  # with the palette


def read_bmp(file: BinaryIO) -> Stored:
    """Raises what Pillow raises on a damaged header."""
    head = BmpImagePlugin.BmpImageFile(io.BytesIO(file.read(_LONGEST_HEADER)))

    def open_image() -> BmpImagePlugin.BmpImageFile:
        file.seek(0)
        return BmpImagePlugin.BmpImageFile(io.BytesIO(file.read()))

    x, y = head.info.get("dpi", (0.0, 0.0))
    return Stored("BMP", head.size, open_image, dpi=plausible_dpi(float(x), float(y)))
