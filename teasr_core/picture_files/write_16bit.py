"""16-bit PNG and any TIFF, encoded by hand: Pillow writes no 16-bit colour.

Lossless, compressed with zlib, the same bytes for the same input (no time stamps).
Formats: PNG specification, third edition; TIFF 6.0 with Adobe's Deflate and the horizontal predictor.
"""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_PNG_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey + alpha, RGB, RGB + alpha
_PNG_FILTER_UP = 2
_ZLIB_LEVEL = 6
_METRES_PER_INCH = 0.0254
_EXIF_PREFIX = b"Exif\0\0"


def encode_png16(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """(H, W, C) uint16, C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA -> the bytes of a 16-bit PNG."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)  # (H, 2 W C)
    filtered = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]  # above the first row the format puts zeros
    filtered[1:, 1:] = rows[1:] - rows[:-1]  # modulo 256, as the format wants
    parts = [b"\x89PNG\r\n\x1a\n"]
    parts.append(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR_TYPE[channels], 0, 0, 0)))
    if icc is not None:
        parts.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc, _ZLIB_LEVEL)))
    if dpi is not None:
        per_metre = [int(value / _METRES_PER_INCH + 0.5) for value in dpi]
        parts.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if exif is not None:
        parts.append(_chunk(b"eXIf", exif.removeprefix(_EXIF_PREFIX)))
    parts.append(_chunk(b"IDAT", zlib.compress(filtered.tobytes(), _ZLIB_LEVEL)))
    parts.append(_chunk(b"IEND", b""))
    return b"".join(parts)


def encode_tiff(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """(H, W, C) uint8 or uint16, C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA -> the bytes of a Deflate TIFF."""
    height, width, channels = pixels.shape
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]  # modulo 2 ** bits, as the predictor wants
    data = zlib.compress(differences.astype(differences.dtype.newbyteorder("<")), _ZLIB_LEVEL)
    ifd = ImageFileDirectory_v2(b"II\x2a\0\0\0\0\0")
    if exif is not None:
        _add_exif(ifd, exif)
    ifd[256], ifd[257] = width, height
    ifd[258] = (8 * pixels.dtype.itemsize,) * channels  # bits per sample
    ifd[259] = 8  # compression: Deflate
    ifd[262] = 2 if channels >= 3 else 1  # RGB, or grey with black as 0
    ifd[273] = (0,)  # where the data begin: Pillow adds the directory's length
    ifd[277] = channels
    ifd[278] = height  # rows in the one strip
    ifd[279] = (len(data),)
    ifd[284] = 1  # interleaved
    ifd[317] = 2  # horizontal predictor
    if channels in (2, 4):
        ifd[338] = (2,)  # straight alpha
    if dpi is not None:
        ifd[282], ifd[283], ifd[296] = dpi[0], dpi[1], 2  # per inch
    if icc is not None:
        ifd[34675] = icc
    buffer = io.BytesIO()
    ifd.save(buffer)
    buffer.write(data)
    return buffer.getvalue()


def _add_exif(ifd: ImageFileDirectory_v2, data: bytes) -> None:
    exif = Image.Exif()
    exif.load(data)
    for tag, value in exif.items():
        if tag not in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            ifd[tag] = value
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        nested = dict(exif.get_ifd(tag))
        if nested.pop(ExifTags.IFD.Interop, None) is not None:  # an offset into the old file
            nested[ExifTags.IFD.Interop] = exif.get_ifd(ExifTags.IFD.Interop)
        if nested:
            ifd.tagtype[tag] = 4  # an offset
            ifd[tag] = nested


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
