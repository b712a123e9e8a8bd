"""What of a picture fits into a file of a format: pixels must, metadata may be left behind and named."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

from ..errors import InputError
from .containers.png import COLOR_SIZES, text_keyword
from .exif import read_block
from .formats import JPEG_EXTENSIONS
from .picture import Picture

TIFF = (".tif", ".tiff")
COMMENT = b"Comment"  # PNG's keyword for what a JPEG's comment segment holds

_MAX_SEGMENT = 65533  # bytes of a JPEG segment
_MAX_JPEG_EXIF = _MAX_SEGMENT - 133  # the resolution may still be added
_MAX_JPEG_XMP = _MAX_SEGMENT - 29  # after its name
_MAX_JPEG_PROFILE = 255 * (_MAX_SEGMENT - 14)
_SRGB_GAMMA, _SRGB_CHROMATICITIES = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_TOLERANCE = 1000  # in hundred-thousandths


def fit_picture(picture: Picture, path: str | Path) -> Picture:
    """`picture` as the file at `path` can hold it: metadata that does not fit is left out, and said in its note.

    Only what would change how the picture looks is refused, so ask before the work; nothing is written. A restored
    picture keeps its metadata, so the one it is made from can be asked.
    Raises InputError for alpha in a JPEG, for a grey profile in a file that holds no grey, and for a colour profile of
    more than 16 MiB in a JPEG.
    """
    suffix = Path(path).suffix.lower()
    if picture.alpha is not None and suffix in JPEG_EXTENSIONS:
        raise InputError(f"{path}: JPEG has no alpha and the image has; expected PNG, WebP or TIFF; write one of them")
    _check_profile(picture, path, suffix)
    left_out: list[str] = []
    exif, xmp, text, color = picture.exif, picture.xmp, picture.text, picture.color
    if suffix in JPEG_EXTENSIONS and exif is not None and len(exif) > _MAX_JPEG_EXIF:
        tags = read_block(exif)
        short = tags.shortened(_MAX_JPEG_EXIF) if tags else None
        exif = short.encode() if short else None
        left_out.append("the longest EXIF entries, which a JPEG cannot hold")
    if suffix in JPEG_EXTENSIONS and xmp is not None and len(xmp) > _MAX_JPEG_XMP:
        xmp = None
        left_out.append("XMP of over 64 KiB, which a JPEG cannot hold")
    if suffix != ".png":
        text = tuple(chunk for chunk in text if suffix in JPEG_EXTENSIONS and _is_comment(chunk))
        lost = dict.fromkeys(text_keyword(chunk).decode("latin-1") for chunk in picture.text if chunk not in text)
        left_out += [f"PNG text ({', '.join(lost)})"] if lost else []
        lost = _looks_of(picture)
        left_out += [f"{' and '.join(lost)}, so that colours may be shown differently"] if lost else []
        color = ()
    kept = (*picture.left_out, *left_out)
    return dataclasses.replace(picture, exif=exif, xmp=xmp, text=text, color=color, left_out=kept)


def written_depth(picture: Picture, suffix: str) -> int:
    return picture.bit_depth if suffix in (".png", *TIFF) else 8


def is_written_grey(picture: Picture, suffix: str) -> bool:
    """Whether the file has one colour channel. A grey picture with a colour profile needs three.

    WebP has no grey, and Pillow (so our own reader) knows no 16-bit grey TIFF with alpha.
    """
    is_deep_tiff = suffix in TIFF and written_depth(picture, suffix) == 16
    can_be = suffix != ".webp" and not (is_deep_tiff and picture.alpha is not None)
    return picture.is_grey and can_be and picture.icc_space != b"RGB "


def _check_profile(picture: Picture, path: str | Path, suffix: str) -> None:
    if picture.icc_space == b"GRAY" and not is_written_grey(picture, suffix):
        advice = "PNG; write PNG" if picture.is_grey else "a colour profile; remove it from the image first"
        raise InputError(f"{path}: a grey colour profile does not fit a colour {suffix} file; expected {advice}")
    if suffix in JPEG_EXTENSIONS and len(picture.icc or b"") > _MAX_JPEG_PROFILE:
        length = len(picture.icc or b"")
        raise InputError(
            f"{path}: the colour profile has {length} bytes; expected at most {_MAX_JPEG_PROFILE} in a JPEG; "
            "write PNG, WebP or TIFF"
        )


def _is_comment(chunk: tuple[bytes, bytes]) -> bool:
    return chunk[0] == b"tEXt" and text_keyword(chunk) == COMMENT and len(chunk[1]) < _MAX_SEGMENT


def _looks_of(picture: Picture) -> list[str]:
    """The names of PNG's chunks without which the pixels would look otherwise than as sRGB or by the profile."""
    color = {name: data for name, data in picture.color if len(data) == COLOR_SIZES.get(name)}
    if b"cICP" in color:
        return [] if color[b"cICP"] == b"\1\x0d\0\1" else ["cICP"]
    if picture.icc or b"sRGB" in color:
        return []
    lost = []
    if b"gAMA" in color and abs(struct.unpack(">I", color[b"gAMA"])[0] - _SRGB_GAMMA) > _TOLERANCE:
        lost.append("gAMA")
    if b"cHRM" in color:
        values = struct.unpack(">8I", color[b"cHRM"])
        if any(abs(a - b) > _TOLERANCE for a, b in zip(values, _SRGB_CHROMATICITIES, strict=True)):
            lost.append("cHRM")
    return lost
