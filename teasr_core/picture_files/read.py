"""An image file to a `Picture`: every common format and mode, upright, no bit lost; damaged files refused."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from ..errors import InputError
from ..memory import is_out_of_memory
from .formats import JPEG_XL, explain_unknown, readable_formats
from .picture import Picture
from .read_16bit import decode_16bit, is_16bit, planar_16bit

_FULL_BITS = (1, 2, 4, 8, 16)  # bits per sample that fill Pillow's modes; 12-bit TIFFs would come out too dark
_RESOLUTION_TAGS = frozenset((ExifTags.Base.XResolution, ExifTags.Base.YResolution))
_MAX_DPI = 2**16 - 1  # what a JPEG holds; beyond it, and under 1, is no resolution but damage
_ALPHA_MODE = {"1": "LA", "L": "LA", "RGB": "RGBA", "P": "RGBA"}  # for a file with one transparent colour
# Tags that describe the TIFF's own layout, profile or previews. They would contradict the file written later.
_LAYOUT_TAGS = frozenset(
    (*range(254, 260), 262, 263, 264, 265, 266, 273, *range(277, 282), 284, 285, 317, 320, *range(322, 326), 330)
) | frozenset((338, 339, 347, *range(512, 522), 529, 530, 531, 532, 700, 33723, 34377, 34675))


def load_picture(path: str | Path, allow_large: bool = False) -> Picture:
    """The picture in a PNG, JPEG, WebP, TIFF or BMP file, rotated upright as its EXIF says.

    Also in a HEIC, AVIF or JPEG XL file where the package that reads it is installed (`formats`), with 8 bits a sample.
    allow_large: read pictures above Pillow's limit of 178 megapixels too.

    1-bit and grey become three equal channels, a palette RGB; a transparent colour becomes alpha; CMYK becomes sRGB
    through its own profile (without one by Pillow's plain formula) and loses the profile with it.
    Raises InputError, one line: a missing, empty, damaged or truncated file, another format, several frames, an
    absurd size, samples that are neither 8 nor 16 bits. An allocator's error passes (`out_of_memory`).
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected an image file; give the file's own path")
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected an image file; check the path")
    try:
        # Pillow refuses above 2 x MAX_IMAGE_PIXELS by itself; below, its warning would only clutter the terminal.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _size_limit(allow_large):
                return _read(path)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path} cannot be opened; expected a readable file; check its permissions") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} {explain_unknown(path)}") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise InputError(
            f"{path} claims over {limit} megapixels; expected fewer; cut it into parts, or pass --allow-large-input to "
            "upscale or compare if you trust the file"
        ) from None
    # Pillow's readers raise many types on damaged bytes (OSError, SyntaxError, struct.error, KeyError ...).
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged ({cause}); expected a whole image; export or copy it again") from error


def read_size(path: str | Path, allow_large: bool = False) -> tuple[int, int] | None:
    """(width, height) of the upright picture by the file's header alone; None where it cannot be told.

    allow_large: as of `load_picture`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _size_limit(allow_large), Image.open(path, formats=readable_formats()) as image:
                width, height = _stored_size(image)
                is_turned = _orientation(image) in (5, 6, 7, 8)
    except Exception:  # many types, see `load_picture`, which says what is wrong
        return None
    return (height, width) if is_turned else (width, height)


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


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of the pixels as Pillow gives them.

    JPEG XL has an orientation of its own, which its decoder has applied already: ISO/IEC 18181-2 wants that of the EXIF
    data to be ignored. Where a JPEG was recompressed without loss, the plugin gives the pixels of that JPEG instead.
    """
    if image.format == JPEG_XL.pillow_name and not getattr(image, "jpeg", False):
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as stored. Some versions of Pillow turn the `size` of a TIFF upright when they open it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return image.size


def _read(path: Path) -> Picture:
    def open_image() -> Image.Image:
        return Image.open(path, formats=readable_formats())

    # From a copy of its own that stays unloaded: loading may close the file that a TIFF's EXIF is still read from,
    # and what is dropped here must not reach the image that Pillow turns.
    with open_image() as image:
        exif = _exif_bytes(image)
    with open_image() as image:
        _check_supported(image, path)
        depth = 16 if is_16bit(image) else 8
        image.load()
        # Read after loading: Pillow turns a TIFF upright while loading and then drops its orientation.
        orientation = _orientation(image)
        dpi, icc = _dpi(image), image.info.get("icc_profile") or None
        if depth == 16:
            pixels, is_grey = decode_16bit(open_image)  # (H, W, 1 to 4) uint16
        else:
            if image.mode == "CMYK":
                image, icc = _cmyk_to_srgb(image, icc, path), None
            pixels, is_grey = _decode_8bit(image, path)  # (H, W, 1 to 4) uint8
    pixels = _upright(pixels, orientation).astype(np.float32) / np.float32(2**depth - 1)
    channels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]  # (1, 1 to 4, H, W)
    count = 1 if is_grey else 3
    rgb = channels[:, :count].expand(-1, 3, -1, -1).contiguous()  # (1, 3, H, W)
    alpha = channels[:, count:].contiguous() if channels.shape[1] > count else None  # (1, 1, H, W)
    return Picture(rgb, alpha, depth, is_grey, icc, exif, dpi)


def _check_supported(image: Image.Image, path: Path) -> None:
    # A phone's JPEG with a depth or gain map (MPO) is one photo; frames of other formats are pictures or pages.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(f"{path} has {frames} frames or pages; expected a single picture; split it into files first")
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


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None, path: Path) -> Image.Image:
    if icc is None:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        raise InputError(f"{path} has a broken CMYK profile; expected a usable one; convert it to RGB first") from None
    assert converted is not None  # only in-place conversion returns nothing
    return converted


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned as EXIF orientation 1 to 8 says; other values are reserved and mean 1."""
    turned = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    return turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned


def _exif_bytes(image: Image.Image) -> bytes | None:
    exif = image.getexif()
    for tag in _LAYOUT_TAGS.intersection(exif):
        del exif[tag]
    if len(exif) == 0:
        return None
    exif[ExifTags.Base.Orientation] = 1
    return exif.tobytes()


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    if isinstance(image, TiffImagePlugin.TiffImageFile) and not _RESOLUTION_TAGS.issubset(image.tag_v2):
        return None  # Pillow would say 1 dpi
    dpi = image.info.get("dpi")
    is_told_by_exif = image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit")
    if dpi is None or is_told_by_exif:  # Pillow does not look into a WebP's, and takes 72 dpi where a JPEG's has none
        exif = image.getexif()
        per_inch = {2: 1.0, 3: 2.54}.get(exif.get(ExifTags.Base.ResolutionUnit, 0))
        x, y = exif.get(ExifTags.Base.XResolution), exif.get(ExifTags.Base.YResolution)
        if per_inch is None or x is None or y is None:
            return None
        dpi = (x * per_inch, y * per_inch)
    dpi = (float(dpi[0]), float(dpi[1]))
    return dpi if all(math.isfinite(value) and 1 <= round(value) <= _MAX_DPI for value in dpi) else None
