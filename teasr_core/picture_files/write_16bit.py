"""16-bit PNG and any TIFF, encoded by hand: Pillow writes no 16-bit colour.

Lossless, compressed with zlib, the same bytes for the same input (no time stamps).
Formats: PNG specification, third edition; TIFF 6.0 with Adobe's Deflate and the horizontal predictor.
"""

import struct
import zlib

import numpy as np

from .containers.png import SIGNATURE, png_chunk
from .exif import RESOLUTION, resolution_entries
from .ifd import BYTE, LONG, LONG8, SHORT, UNDEFINED, Entry, Tree, encode_tree, entry_of

_PNG_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey + alpha, RGB, RGB + alpha
_PNG_FILTER_UP = 2
_ZLIB_LEVEL = 6
_PNG_LONGEST = 2**30  # bytes in one chunk; the format allows a little less than 2**31
_TIFF_LONGEST = 2**32 - 2**16  # bytes that a classic TIFF may have; BigTIFF takes more


def encode_png16(pixels: np.ndarray) -> bytes:
    """(H, W, C) uint16, C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA -> the bytes of a 16-bit PNG."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)  # (H, 2 W C)
    filtered = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = rows[0]  # above the first row the format puts zeros
    filtered[1:, 1:] = rows[1:] - rows[:-1]  # modulo 256, as the format wants
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR_TYPE[channels], 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), _ZLIB_LEVEL)
    parts = [data[start : start + _PNG_LONGEST] for start in range(0, len(data), _PNG_LONGEST)]
    chunks = [(b"IHDR", header), *((b"IDAT", part) for part in parts), (b"IEND", b"")]
    return SIGNATURE + b"".join(png_chunk(name, content) for name, content in chunks)


def encode_tiff(
    pixels: np.ndarray,
    tags: Tree,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    xmp: bytes | None = None,
    longest: int = _TIFF_LONGEST,
) -> bytes:
    """(H, W, C) uint8 or uint16, C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA -> the bytes of a Deflate TIFF.

    tags: those of the picture's EXIF. A file of more than `longest` bytes becomes a BigTIFF.
    """
    height, width, channels = pixels.shape
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]  # modulo 2 ** bits, as the predictor wants
    data = zlib.compress(differences.astype(differences.dtype.newbyteorder("<")), _ZLIB_LEVEL)
    entries = {
        **{tag: entry for tag, entry in tags.entries.items() if tag not in RESOLUTION},
        256: entry_of(LONG, width),
        257: entry_of(LONG, height),
        258: entry_of(SHORT, *[8 * pixels.dtype.itemsize] * channels),  # bits per sample
        259: entry_of(SHORT, 8),  # compression: Deflate
        262: entry_of(SHORT, 2 if channels >= 3 else 1),  # RGB, or grey with black as 0
        277: entry_of(SHORT, channels),
        278: entry_of(LONG, height),  # rows in the one strip
        284: entry_of(SHORT, 1),  # interleaved
        317: entry_of(SHORT, 2),  # horizontal predictor
    }
    if channels in (2, 4):
        entries[338] = entry_of(SHORT, 2)  # straight alpha
    if dpi is not None:
        entries |= resolution_entries(dpi)
    if icc is not None:
        entries[34675] = Entry(UNDEFINED, len(icc), icc)
    if xmp is not None:
        entries[700] = Entry(BYTE, len(xmp), xmp)
    place, head = 0, b""
    for _ in range(2):  # how long the directory is does not depend on where the data are
        is_big = len(data) + sum(len(entry.data) for entry in entries.values()) > longest
        number = LONG8 if is_big else LONG
        entries |= {273: entry_of(number, place), 279: entry_of(number, len(data))}
        head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if is_big else struct.pack("<2sHI", b"II", 42, 8)
        head += encode_tree(Tree(entries, tags.children), "<", len(head), is_big)
        place = len(head)
    return head + data
