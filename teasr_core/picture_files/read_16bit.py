"""Reading 16-bit RGB, RGBA and grey with Pillow alone, every bit kept.

Pillow has no 16-bit RGB mode: its readers keep the high byte of each sample. They do so through a raw mode that names
the byte order, so decoding once as stored and once with the order swapped yields the high and the low bytes. That is
exact, keeps Pillow's checks for truncated files, and spares the command line a second image library.
"""

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_SWAPPED = {"B": "L", "L": "B"}
_PHOTOMETRIC, _PLANAR, _BITS = 262, 284, 258  # TIFF tags
_WHITE_IS_ZERO, _SEPARATE = 0, 2  # their values


def is_16bit(image: Image.Image) -> bool:
    """Whether the samples of a just opened (not yet loaded) PNG or TIFF have 16 bits."""
    return any(";16" in _raw_mode(tile) for tile in getattr(image, "tile", []))


def planar_16bit(image: TiffImageFile) -> bool:
    """Whether a just opened TIFF stores 16-bit planes one after another, which Pillow reads wrongly as 8-bit."""
    tags = image.tag_v2
    several = len(tags.get(_BITS, (1,))) > 1
    return several and tags[_BITS][0] == 16 and tags.get(_PLANAR, 1) == _SEPARATE


def decode_16bit(open_image: Callable[[], Image.Image]) -> tuple[np.ndarray, bool]:
    """(H, W, C) uint16 and whether it is grey; C = 1, 2 (grey, alpha), 3 or 4 (RGB, straight alpha).

    open_image: opens the same file anew at each call. Raises what Pillow raises on damaged files.
    """
    with open_image() as image:
        raw = _raw_mode(image.tile[0])
        transparent = image.info.get("transparency")  # one colour, in full 16-bit samples
        inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if raw.startswith("I;16"):
        with open_image() as image:
            pixels = np.asarray(image).astype(np.uint16)[..., None]  # (H, W, 1)
        if inverted:  # Pillow inverts such greys at 8 bits only
            pixels = 65535 - pixels
    elif raw == "LA;16B":
        # Four bytes a pixel, so Pillow's plain RGBA decoder hands over all of them as they are.
        pixels = np.ascontiguousarray(_decode(open_image, "RGBA")).view(">u2").astype(np.uint16)  # (H, W, 2)
    else:
        stem, order = raw[:-1], raw[-1]
        if order == "N":  # what libtiff decoded, in this machine's order
            order = "L" if sys.byteorder == "little" else "B"
        stem, premultiplied = stem.replace("RGBa", "RGBA"), stem.startswith("RGBa")
        pixels = _decode(open_image, stem + order).astype(np.uint16) << 8  # (H, W, 3 or 4)
        pixels |= _decode(open_image, stem + _SWAPPED[order])
        if premultiplied:
            pixels = _straight(pixels)
    is_grey = pixels.shape[2] <= 2
    if transparent is not None and pixels.shape[2] in (1, 3):
        visible = (pixels != np.asarray(transparent, dtype=np.uint16)).any(axis=2, keepdims=True)  # (H, W, 1)
        pixels = np.concatenate((pixels, visible * np.uint16(65535)), axis=2)  # (H, W, 2 or 4)
    return pixels, is_grey


def _decode(open_image: Callable[[], Image.Image], raw_mode: str) -> np.ndarray:
    """(H, W, C) uint8: the file decoded through another raw mode than its own."""
    with open_image() as image:
        image.tile = [_with_raw_mode(tile, raw_mode) for tile in image.tile]
        return np.asarray(image)


def _raw_mode(tile: tuple) -> str:
    args = tile[3]
    raw_mode = args[0] if isinstance(args, tuple) and args else args
    return raw_mode if isinstance(raw_mode, str) else ""


def _with_raw_mode(tile: tuple, raw_mode: str) -> tuple:
    args = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
    replace = getattr(tile, "_replace", None)  # newer Pillow has a named tuple here
    return replace(args=args) if replace else (*tile[:3], args)


def _straight(pixels: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA (H, W, 4) uint16 to straight alpha; the colour under alpha 0 is 0."""
    alpha = pixels[..., 3:].astype(np.float64)  # (H, W, 1)
    scale = np.divide(65535.0, alpha, out=np.zeros_like(alpha), where=alpha > 0)
    rgb = np.minimum(np.floor(pixels[..., :3] * scale + 0.5), 65535).astype(np.uint16)  # (H, W, 3)
    return np.concatenate((rgb, pixels[..., 3:]), axis=2)
