"""An image file to a `Picture`: every common format and mode, upright, no bit lost; damaged files refused.

Metadata never stops a picture whose pixels can be decoded: what cannot be kept is left out and named.
"""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, TiffImagePlugin

from ..errors import InputError
from ..image.levels import to_levels
from ..memory import is_out_of_memory
from .containers.bmp import read_bmp
from .containers.jpeg import NO_END, load_without_end, read_jpeg
from .containers.plugin import read_plugin
from .containers.png import SIGNATURE, read_png
from .containers.tiff import read_tiff
from .containers.webp import read_webp
from .exif import DAMAGED
from .formats import explain_unknown
from .picture import Picture
from .read_16bit import decode_16bit, is_16bit, planar_16bit
from .stored import DAMAGED_XMP, PixelsNotReadError, Stored
from .xmp import clean_xmp

NEUTRAL_GREY = 0.5  # shows through the transparent parts of a picture for the trainer

_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO], Stored]], ...] = (
    (lambda head: head.startswith(SIGNATURE), read_png),
    (lambda head: head.startswith(b"\xff\xd8\xff"), read_jpeg),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", read_webp),
    (lambda head: head[:4] in (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b"), read_tiff),
    (lambda head: head.startswith(b"BM"), read_bmp),
)
_FULL_BITS = (1, 2, 4, 8, 16)  # bits per sample that fill Pillow's modes; 12-bit TIFFs would come out too dark
_ALPHA_MODE = {"1": "LA", "L": "LA", "RGB": "RGBA", "P": "RGBA"}  # for a file with one transparent colour
# Spaces of colour profiles that suit neither RGB nor grey pixels; every program would ignore or misread them.
_OTHER_SPACES = (b"CMYK", b"CMY ", b"Lab ", b"XYZ ", b"YCbr", b"HSV ", b"HLS ")


def load_picture(path: str | Path, allow_large: bool = False) -> Picture:
    """The picture in a PNG, JPEG, WebP, TIFF or BMP file, rotated upright as its EXIF says.

    Also in a HEIC, AVIF or JPEG XL file where the package that reads it is installed (`formats`), with 8 bits a sample.
    allow_large: read pictures above Pillow's limit of 178 megapixels too.

    1-bit and grey become three equal channels, a palette RGB; a transparent colour becomes alpha; CMYK becomes sRGB
    through its own profile (without a usable one by Pillow's plain formula) and loses the profile with it. Metadata
    that cannot be kept, or would be untrue of the enlarged picture, is left out and named in `Picture.note`.
    Raises InputError, one line: a missing, empty, damaged or truncated file, another format, several frames, an
    absurd size, samples that are neither 8 nor 16 bits. An allocator's error passes (`out_of_memory`).
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected an image file; give the file's own path")
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected an image file; check the path")
    try:
        with _size_limit(allow_large), open(path, "rb") as file:
            return _read(file, path)
    except InputError:
        raise
    except PixelsNotReadError as error:
        raise InputError(f"{path} {error}") from None
    except PermissionError:
        raise InputError(f"{path} cannot be opened; expected a readable file; check its permissions") from None
    # Pillow's readers raise many types on damaged bytes (OSError, SyntaxError, struct.error, KeyError ...).
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged ({cause}); expected a whole image; export or copy it again") from error


def read_rgb(path: Path) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB, upright, with alpha laid on neutral grey and 16 bits rounded to 8.

    Raises InputError where `load_picture` does.
    """
    picture = load_picture(path)
    rgb = picture.rgb  # (1, 3, H, W)
    if picture.alpha is not None:
        rgb = NEUTRAL_GREY + (rgb - NEUTRAL_GREY) * picture.alpha
    return np.ascontiguousarray(to_levels(rgb[0]).permute(1, 2, 0).numpy())


def read_size(path: str | Path, allow_large: bool = False) -> tuple[int, int] | None:
    """(width, height) of the upright picture by the file's header alone; None where it cannot be told.

    allow_large: as of `load_picture`.
    """
    try:
        with _size_limit(allow_large), open(path, "rb") as file:
            stored = _take_apart(file, Path(path))
            _check_size(stored.size, Path(path))
    except Exception:  # many types, see `load_picture`, which says what is wrong
        return None
    width, height = stored.size
    is_turned = stored.exif is not None and stored.exif.orientation >= 5
    return (height, width) if is_turned else (width, height)


def _take_apart(file: BinaryIO, path: Path) -> Stored:
    head = file.read(16)
    for is_its, reader in _READERS:
        if is_its(head):
            file.seek(0)
            return reader(file)
    stored = read_plugin(file)
    if stored is None:
        raise InputError(f"{path} {explain_unknown(path)}")
    return stored


def _check_size(size: tuple[int, int], path: Path) -> None:
    """Raises InputError for a picture of more pixels than Pillow opens."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if limit and size[0] * size[1] > limit:
        raise InputError(
            f"{path} claims over {limit // 1_000_000} megapixels; expected fewer; cut it into parts, or pass "
            "--allow-large-input to upscale or compare if you trust the file"
        )


@contextmanager
def _size_limit(allow_large: bool) -> Iterator[None]:
    """In this block Pillow opens pictures of any size, if `allow_large`. The limit is a global of Pillow's."""
    before = Image.MAX_IMAGE_PIXELS
    if allow_large:
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        if allow_large:
            Image.MAX_IMAGE_PIXELS = before


def _read(file: BinaryIO, path: Path) -> Picture:
    stored = _take_apart(file, path)
    _check_size(stored.size, path)
    # A phone's JPEG with a depth or gain map (MPO) is one photo; frames of other formats are pictures or pages.
    if stored.frames > 1:
        raise InputError(
            f"{path} has {stored.frames} frames or pages; expected a single picture; split it into files first"
        )
    left_out, notes, icc = list(stored.left_out), list(stored.notes), stored.icc
    with stored.open_image() as image:
        _check_supported(image, path)
        depth = 16 if is_16bit(image) else 8
        if depth == 16:
            pixels, is_grey = decode_16bit(stored.open_image)  # (H, W, 1 to 4) uint16
        else:
            loaded, note = _load(image, stored)
            notes += [note] if note else []
            if loaded.mode == "CMYK":
                loaded = _cmyk_to_srgb(loaded, icc, left_out)
                icc = None
            pixels, is_grey = _decode_8bit(loaded, path)  # (H, W, 1 to 4) uint8
    orientation = stored.exif.orientation if stored.exif else 1
    pixels = _upright(pixels, orientation).astype(np.float32) / np.float32(2**depth - 1)
    channels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]  # (1, 1 to 4, H, W)
    count = 1 if is_grey else 3
    rgb = channels[:, :count].expand(-1, 3, -1, -1).contiguous()  # (1, 3, H, W)
    alpha = channels[:, count:].contiguous() if channels.shape[1] > count else None  # (1, 1, H, W)
    if icc is not None and icc[16:20] in _OTHER_SPACES:
        left_out.append(f"a colour profile for {icc[16:20].decode('ascii').strip()} pictures")
        icc = None
    xmp = clean_xmp(stored.xmp) if stored.xmp else None
    left_out += [DAMAGED_XMP] if stored.xmp and xmp is None else []
    exif = _exif_block(stored, left_out)
    dpi = stored.dpi or (stored.exif.dpi() if stored.exif and stored.kind != "TIFF" else None)
    if dpi is not None and orientation >= 5:
        dpi = (dpi[1], dpi[0])
    return Picture(
        rgb,
        alpha,
        depth,
        is_grey,
        icc,
        exif,
        dpi,
        xmp or None,
        stored.text,
        stored.color,
        tuple(left_out),
        tuple(notes),
    )


def _load(image: Image.Image, stored: Stored) -> tuple[Image.Image, str | None]:
    """The image with its pixels, and a note where something of it was missing that is no pixel."""
    try:
        image.load()
        return image, None
    except OSError:
        whole = load_without_end(stored) if stored.kind == "JPEG" else None
        if whole is None:
            raise
        return whole, NO_END


def _exif_block(stored: Stored, left_out: list[str]) -> bytes | None:
    if stored.exif is None:
        return None
    left_out += stored.exif.notes
    exif = stored.exif.upright()
    try:
        return None if exif.tree.is_empty() else exif.encode()
    except struct.error:  # above 4 GiB
        left_out.append(DAMAGED)
        return None


def _check_supported(image: Image.Image, path: Path) -> None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = set(image.tag_v2.get(258, (1,)))
        if len(bits) != 1 or not bits <= set(_FULL_BITS):
            raise InputError(f"{path} has {sorted(bits)} bits per sample; expected 8 or 16; convert it first")
        if planar_16bit(image):
            raise InputError(f"{path} is 16-bit with separate planes; expected interleaved; save it interleaved first")
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise InputError(
            f"{path} has pixels of kind {image.mode!r}; expected 8 or 16-bit RGB or grey; convert it first"
        )
    if image.mode == "CMYK" and is_16bit(image):
        raise InputError(f"{path} is 16-bit CMYK; expected RGB or grey; convert it to RGB first")


def _decode_8bit(image: Image.Image, path: Path) -> tuple[np.ndarray, bool]:
    """(H, W, C) uint8 and whether it is grey; C = 1, 2 (grey, alpha), 3 or 4 (RGB, alpha)."""
    mode = image.mode
    if mode in _ALPHA_MODE and "transparency" in image.info:
        mode = _ALPHA_MODE[mode]
    elif mode in ("P", "PA"):
        has_alpha = mode == "PA" or (image.palette is not None and image.palette.mode == "RGBA")
        mode = "RGBA" if has_alpha else "RGB"
    else:
        mode = {"1": "L", "RGBX": "RGB", "YCbCr": "RGB"}.get(mode, mode)
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise InputError(f"{path} has pixels of kind {mode!r}; expected RGB or grey; convert it first")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))  # (H, W) or (H, W, C)
    return np.atleast_3d(pixels), mode in ("L", "LA")


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None, left_out: list[str]) -> Image.Image:
    if icc is None:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        left_out.append("a CMYK profile that cannot be used")
        return image.convert("RGB")
    assert converted is not None  # only in-place conversion returns nothing
    return converted


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned as EXIF orientation 1 to 8 says; other values are reserved and mean 1."""
    turned = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    return turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
