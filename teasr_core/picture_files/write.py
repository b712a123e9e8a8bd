"""A `Picture` to a file: whole or not at all, the same bytes every time, with all metadata that the format can hold."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError, OutputError
from ..image.levels import to_levels
from ..memory import is_out_of_memory
from ..whole_file import check_folder, check_name, write_whole
from .containers.png import XMP_KEYWORD, insert_chunks
from .exif import PREFIX, Exif, read_block
from .fit import TIFF, fit_picture, is_written_grey, written_depth
from .formats import JPEG_EXTENSIONS
from .ifd import Tree
from .picture import Picture
from .write_16bit import encode_png16, encode_tiff

# Not .bmp: it holds no colour profile, EXIF or alpha, and dropping them silently would change the picture.
WRITABLE_EXTENSIONS = (".png", *JPEG_EXTENSIONS, ".webp", ".tif", ".tiff")

_MAX_SIDE_PX = {**dict.fromkeys(JPEG_EXTENSIONS, 65500), ".webp": 16383}  # limits of the formats' own encoders
_METRES_PER_INCH = 0.0254


def check_output(
    path: str | Path,
    has_alpha: bool,
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
    is_folder_ours: bool = False,
) -> None:
    """Raises InputError when a picture could not be saved at `path`; call it before the work, nothing is written.

    Checked: the ending, alpha in a JPEG, an existing file unless `overwrite`, the folder and whether it can be written,
    the length of the name, and with `size` = (width, height) the format's largest side. is_folder_ours: the folder may
    be missing, because it is made later.
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
    if not is_folder_ours and not os.path.isdir(path.parent):
        raise InputError(f"{path.parent} is not a folder; expected the output's folder; make it first")
    check_free(path, overwrite)
    check_name(path)
    check_folder(path.parent)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises InputError for a folder, and for an existing file unless `overwrite`."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; expected a file name; choose another name")
    if os.path.exists(path) and not overwrite:
        raise InputError(f"{path} exists already; expected a new name; choose another or pass --overwrite")


def save_picture(picture: Picture, path: str | Path, quality: int = 95, overwrite: bool = False) -> None:
    """Writes `picture` in the format of the ending of `path`.

    Values are rounded half up, without dithering. A 16-bit picture stays 16-bit in PNG and TIFF and becomes 8-bit in
    JPEG and WebP. Grey stays grey (WebP, and TIFF with 16-bit grey and alpha, know only colour). quality: 1..100 for
    JPEG (4:4:4) and WebP. The bytes depend on the picture alone. They appear under `path` at once, through a
    temporary file beside it that is gone afterwards.
    Metadata that the format cannot hold is left out (`fit_picture`).
    Raises InputError as `check_output` and `fit_picture` do, OutputError for NaN or infinite pixels. An allocator's
    error passes.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    height, width = picture.rgb.shape[-2:]
    check_output(path, picture.alpha is not None, overwrite, (width, height))
    picture = fit_picture(picture, path)
    if not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}; expected 1 to 100; choose for example 95")
    try:
        data = _encode(picture, suffix, quality)
    except (OSError, ValueError, OverflowError, struct.error) as error:
        if is_out_of_memory(error):
            raise
        cause = " ".join(str(error).split())
        raise InputError(f"{path} cannot hold this picture ({cause}); expected one it can; write PNG") from error
    write_whole(data, path)


def _encode(picture: Picture, suffix: str, quality: int) -> bytes:
    depth = written_depth(picture, suffix)
    pixels = _quantize(picture, is_written_grey(picture, suffix), depth)  # (H, W, C)
    exif = _exif_for(picture, with_dpi=suffix == ".webp")
    if suffix in TIFF:
        return encode_tiff(pixels, exif.tree if exif else Tree(), picture.icc, picture.dpi, picture.xmp)
    block = exif.encode() if exif else None
    if suffix == ".png":
        png = encode_png16(pixels) if depth == 16 else _save(pixels, "PNG")
        return insert_chunks(png, _png_metadata(picture, block))
    options = {"icc_profile": picture.icc, "exif": block, "xmp": picture.xmp, "quality": quality}
    if suffix == ".webp":
        return _save(pixels, "WEBP", **options)
    comments = [data.partition(b"\0")[2] for _, data in picture.text]
    options |= {"dpi": picture.dpi, "comment": b"\n".join(comments) or None}
    return _save(pixels, "JPEG", subsampling=0, **options)  # restored colour detail is worth the bytes


def _save(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """(H, W, C) uint8 encoded by Pillow, with those options that are not None."""
    buffer = io.BytesIO()
    kept = {name: value for name, value in options.items() if value is not None}
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, kind, **kept)
    return buffer.getvalue()


def _png_metadata(picture: Picture, block: bytes | None) -> list[tuple[bytes, bytes]]:
    """The chunks between the header and the pixels."""
    chunks = [(name, data) for name, data in picture.color if not (name == b"sRGB" and picture.icc)]
    if picture.icc is not None:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    if picture.dpi is not None:
        per_metre = [int(value / _METRES_PER_INCH + 0.5) for value in picture.dpi]
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if block is not None:
        chunks.append((b"eXIf", block.removeprefix(PREFIX)))
    if picture.xmp is not None:
        chunks.append((b"iTXt", XMP_KEYWORD + bytes(5) + picture.xmp))
    return [*chunks, *picture.text]


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


def _exif_for(picture: Picture, with_dpi: bool) -> Exif | None:
    """The picture's EXIF with the new size in it, and for a format without a field of its own the resolution."""
    exif = read_block(picture.exif) if picture.exif is not None else None
    height, width = picture.rgb.shape[-2:]
    exif = (exif or Exif(Tree())).of_size(width, height).of_resolution(picture.dpi, with_dpi)
    return None if exif.tree.is_empty() else exif
