"""HEIC, AVIF and JPEG XL, which Pillow reads through a package of their own where it is installed."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from ..exif import read_block
from ..formats import HEIC, JPEG_XL, OPTIONAL, is_installed
from ..stored import FURTHER_PICTURES, Stored


def read_plugin(file: BinaryIO) -> Stored | None:
    """The file taken apart; None where no installed package knows it. Raises what the package raises on damage."""
    Image.init()
    file.seek(0)
    head = file.read(16)
    for kind in OPTIONAL:
        if not is_installed(kind):
            continue
        _, accepts = Image.OPEN[kind.pillow_name]
        if accepts is not None and (not (answer := accepts(head)) or isinstance(answer, str)):
            continue  # a text says why it cannot be read
        image = _open(file, kind.pillow_name)
        exif = read_block(image.info.get("exif") or b"")
        # JPEG XL has an orientation of its own, which its decoder has applied already: ISO/IEC 18181-2 wants that of
        # the EXIF data to be ignored. Where a JPEG was recompressed without loss, the plugin gives the pixels of that
        # JPEG instead.
        if exif is not None and kind is JPEG_XL and not getattr(image, "jpeg", False):
            exif = exif.upright()
        # The pictures of a HEIC file are no frames: its opener takes the primary one, which every viewer shows.
        count = getattr(image, "n_frames", 1)
        is_album = kind is HEIC and count > 1
        return Stored(
            kind.pillow_name,
            image.size,
            lambda name=kind.pillow_name: _open(file, name),
            frames=1 if is_album else count,
            exif=exif,
            icc=image.info.get("icc_profile") or None,
            xmp=image.info.get("xmp") or None,
            left_out=(FURTHER_PICTURES,) if is_album else (),
        )
    return None


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Without `Image.open`, which would warn of large pictures."""
    file.seek(0)
    opener, _ = Image.OPEN[name]
    try:
        return opener(file, "")
    except RuntimeError as error:  # the JPEG XL decoder's, with advice for those who build it
        raise ValueError("its decoder cannot read it") from error
