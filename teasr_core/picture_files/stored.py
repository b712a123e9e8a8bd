"""A picture file taken apart: the pixels on one side, all that is said about them on the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from .exif import Exif

DAMAGED_PROFILE = "a damaged colour profile"
DAMAGED_XMP = "damaged XMP"
FURTHER_PICTURES = "the further pictures of the file (a gain map, a depth map or another view)"


class PixelsNotReadError(ValueError):
    """A whole picture of a kind that is not read here. The text follows the file's name and says what to do."""


@dataclass(frozen=True)
class Stored:
    """What a file holds. Nothing but its header and its metadata has been read.

    Pillow refuses a picture, or warns in the middle of a run, because of metadata that it cannot interpret. It is
    therefore given the pixels alone.

    size: (width, height) as stored, before orientation. open_image: the pixels as a Pillow image that is not loaded,
    opened anew by each call; the file must still be open. frames: pictures or pages, without previews. dpi: by the
    format's own field. text: PNG's text chunks, each as its type and its data. color: PNG's chunks on colour, likewise.
    left_out: metadata that cannot be kept, in words. notes: what else is odd about the file.
    """

    kind: str
    size: tuple[int, int]
    open_image: Callable[[], Image.Image]
    frames: int = 1
    exif: Exif | None = None
    icc: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[bytes, bytes], ...] = ()
    color: tuple[tuple[bytes, bytes], ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
