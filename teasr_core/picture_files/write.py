"""A `Picture` to a file: whole or not at all, the same bytes every time, profile, EXIF and resolution kept."""

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from ..errors import InputError, OutputError
from ..image.levels import to_levels
from ..memory import is_out_of_memory
from ..whole_file import write_whole
from .formats import JPEG_EXTENSIONS
from .picture import Picture
from .write_16bit import encode_png16, encode_tiff

# Not .bmp: it holds no colour profile, EXIF or alpha, and dropping them silently would change the picture.
WRITABLE_EXTENSIONS = (".png", *JPEG_EXTENSIONS, ".webp", ".tif", ".tiff")

_MAX_SIDE_PX = {**dict.fromkeys(JPEG_EXTENSIONS, 65500), ".webp": 16383}  # limits of the formats' own encoders
_TIFF = (".tif", ".tiff")
_GREY_PROFILE = b"GRAY"


def check_output(
    path: str | Path, has_alpha: bool, overwrite: bool = False, size: tuple[int, int] | None = None
) -> None:
    """Raises InputError when a picture could not be saved at `path`; call it before the work, nothing is written.

    Checked: the ending, alpha in a JPEG, an existing file unless `overwrite`, the folder, and with `size` = (width,
    height) the format's largest side.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE_EXTENSIONS:
        known = " ".join(WRITABLE_EXTENSIONS)
        raise InputError(f"{path} ends in {suffix or 'nothing'}; expected one of {known}; choose one of them")
    if has_alpha and suffix in JPEG_EXTENSIONS:
        raise InputError(f"{path}: JPEG has no alpha and the image has; expected PNG, WebP or TIFF; write one of them")
    if size is not None and max(size) > _MAX_SIDE_PX.get(suffix, max(size)):
        limit = _MAX_SIDE_PX[suffix]
        raise InputError(f"{path}: {size[0]} x {size[1]} is over {suffix}'s {limit} px a side; write PNG or TIFF")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; expected the output's folder; make it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file name; choose another name")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; expected a new name; choose another or pass --overwrite")


def check_profile(picture: Picture, path: str | Path) -> None:
    """Raises InputError when the colour profile of `picture` does not fit the file at `path`; nothing is written.

    A restored picture keeps its profile, so the one it is made from can be asked before the work.
    """
    suffix = Path(path).suffix.lower()
    if picture.icc and picture.icc[16:20] == _GREY_PROFILE and not _is_written_grey(picture, suffix):
        advice = "PNG; write PNG" if picture.is_grey else "a colour profile; remove it from the image first"
        raise InputError(f"{path}: a grey colour profile does not fit a colour {suffix} file; expected {advice}")


def save_picture(picture: Picture, path: str | Path, quality: int = 95, overwrite: bool = False) -> None:
    """Writes `picture` in the format of the ending of `path`.

    Values are rounded half up, without dithering. A 16-bit picture stays 16-bit in PNG and TIFF and becomes 8-bit in
    JPEG and WebP. Grey stays grey (WebP, and TIFF with 16-bit grey and alpha, know only colour). quality: 1..100 for
    JPEG (4:4:4) and WebP. The bytes depend on the picture alone. They appear under `path` at once, through a
    temporary file beside it that is gone afterwards.
    Raises InputError as `check_output` and `check_profile` do, OutputError for NaN or infinite pixels. An allocator's
    error passes.
    """
    path = Path(path)
    height, width = picture.rgb.shape[-2:]
    check_output(path, picture.alpha is not None, overwrite, (width, height))
    check_profile(picture, path)
    if not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}; expected 1 to 100; choose for example 95")
    try:
        data = _encode(picture, path.suffix.lower(), quality)
    except (OSError, ValueError, OverflowError, struct.error) as error:
        if is_out_of_memory(error):
            raise
        cause = " ".join(str(error).split())
        raise InputError(f"{path} cannot hold this picture ({cause}); expected one it can; write PNG") from error
    write_whole(data, path)


def _written_depth(picture: Picture, suffix: str) -> int:
    return picture.bit_depth if suffix in (".png", *_TIFF) else 8


def _is_written_grey(picture: Picture, suffix: str) -> bool:
    # WebP has no grey, and Pillow (so our own reader) knows no 16-bit grey TIFF with alpha.
    is_deep_tiff = suffix in _TIFF and _written_depth(picture, suffix) == 16
    return picture.is_grey and suffix != ".webp" and not (is_deep_tiff and picture.alpha is not None)


def _encode(picture: Picture, suffix: str, quality: int) -> bytes:
    depth = _written_depth(picture, suffix)
    as_grey = _is_written_grey(picture, suffix)
    pixels = _quantize(picture, as_grey, depth)  # (H, W, C)
    exif = _exif_for(picture, with_dpi=suffix == ".webp")
    if suffix in _TIFF:
        return encode_tiff(pixels, picture.icc, exif, picture.dpi)
    if depth == 16:
        return encode_png16(pixels, picture.icc, exif, picture.dpi)
    options = {"icc_profile": picture.icc, "exif": exif, "dpi": picture.dpi}
    if suffix == ".png":
        kind = "PNG"
    elif suffix == ".webp":
        kind = "WEBP"
        options |= {"quality": quality}
    else:
        kind = "JPEG"
        options |= {"quality": quality, "subsampling": 0}  # restored colour detail is worth the bytes
    buffer = io.BytesIO()
    kept = {name: value for name, value in options.items() if value is not None}
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, kind, **kept)
    return buffer.getvalue()


def _quantize(picture: Picture, as_grey: bool, depth: int) -> np.ndarray:
    """(H, W, C) uint8 or uint16, C = 1 to 4: grey or RGB, then alpha if there is one."""
    rgb = picture.rgb[0]  # (3, H, W)
    if as_grey:
        # A network colours a grey picture a little; its luma (BT.601) is what the grey file keeps.
        rgb = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])[None]  # (1, H, W)
    planes = rgb if picture.alpha is None else torch.cat((rgb, picture.alpha[0]))  # (C, H, W)
    if not planes.isfinite().all():
        raise OutputError("the picture has NaN or infinite pixels; expected numbers; run again in fp32")
    return np.ascontiguousarray(to_levels(planes, depth).cpu().permute(1, 2, 0).numpy())


def _exif_for(picture: Picture, with_dpi: bool) -> bytes | None:
    """The picture's EXIF with the new size in it, and for a format without a field of its own the resolution."""
    exif = Image.Exif()
    if picture.exif is not None:
        exif.load(picture.exif)
    if with_dpi and picture.dpi is not None:
        exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = picture.dpi
        exif[ExifTags.Base.ResolutionUnit] = 2  # inch
    elif picture.exif is None:
        return None
    if ExifTags.IFD.Exif in exif:  # asking for a missing one would add it, empty
        details = exif.get_ifd(ExifTags.IFD.Exif)
        height, width = picture.rgb.shape[-2:]
        for tag, side in ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height)):
            if tag in details:
                details[tag] = side
    return exif.tobytes()
