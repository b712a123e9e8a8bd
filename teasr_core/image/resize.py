"""Exact geometry: the target size, the resize, the padding to whole tokens and the crop back.

Images are float32 tensors (B, C, H, W) in [0, 1]. No function changes its input or draws a random number.
"""

import math
import operator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import InputError

MIN_SCALE = 0.25
MAX_SCALE = 8.0
# ComfyUI's "Scale Image to Total Pixels" counts the same way, so 4 megapixels are 2048 x 2048 in both.
PIXELS_PER_MEGAPIXEL = 1024 * 1024
RESAMPLES = ("lanczos", "bicubic")

_FLOAT_SLACK = 1e-9  # 3 * (1 / 3) must still count as 1 when a limit is compared or a side is floored


@dataclass(frozen=True)
class TargetSize:
    """A size in whole pixels, both sides at least 1."""

    width: int
    height: int


@dataclass(frozen=True)
class Padding:
    """Pixels added on the right and at the bottom; nothing is ever added on the left or at the top."""

    right: int
    bottom: int


def size_by_factor(width: int, height: int, scale: float) -> TargetSize:
    """Both sides times `scale` (0.25..8), rounded half up, at least 1 px.

    Raises InputError for a scale that is NaN, infinite or outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    scale = _checked_scale(scale, "scale")
    return TargetSize(_round_side(width * scale), _round_side(height * scale))


def size_exact(width: int, height: int, target_width: int, target_height: int) -> TargetSize:
    """The size asked for, which may change the aspect ratio.

    Raises InputError when either axis would be scaled by less than 0.25 or more than 8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    target = TargetSize(check_side(target_width, "target width"), check_side(target_height, "target height"))
    _checked_scale(target.width / width, f"width {width} -> {target.width}: scale")
    _checked_scale(target.height / height, f"height {height} -> {target.height}: scale")
    return target


def size_by_shortest(width: int, height: int, shortest_px: int) -> TargetSize:
    """The shorter side becomes `shortest_px`, the other follows the aspect ratio (rounded half up).

    Raises InputError when the implied scale is outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    return _size_by_edge(width, height, min(width, height), check_side(shortest_px, "shortest edge"), "shortest edge")


def size_by_longest(width: int, height: int, longest_px: int) -> TargetSize:
    """The longer side becomes `longest_px`, the other follows the aspect ratio (rounded half up).

    Raises InputError when the implied scale is outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    return _size_by_edge(width, height, max(width, height), check_side(longest_px, "longest edge"), "longest edge")


def size_by_megapixels(width: int, height: int, megapixels: float) -> TargetSize:
    """About `megapixels` x 1024 x 1024 pixels at the same aspect ratio (each side rounded half up).

    Raises InputError for a count that is NaN, infinite or not positive, or an implied scale outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    megapixels = check_megapixels(megapixels)
    scale = math.sqrt(megapixels * PIXELS_PER_MEGAPIXEL / (width * height))
    scale = _checked_scale(scale, f"{width} x {height} to {megapixels:g} megapixels: scale")
    return TargetSize(_round_side(width * scale), _round_side(height * scale))


def cap_megapixels(size: TargetSize, max_mp: float) -> TargetSize:
    """`size` itself when it has at most `max_mp` x 1024 x 1024 pixels or `max_mp` is 0 (off), else a smaller one.

    The smaller one keeps the aspect ratio and never exceeds the cap, so its sides are rounded down (at least 1 px).
    Never upsizes. The cap may push the scale below 0.25: it guards memory, the request is checked before it.
    Raises InputError for a cap that is NaN, infinite or negative.
    """
    max_mp = _number(max_mp, "max_megapixels")
    if max_mp < 0:
        raise InputError(f"max_megapixels is {max_mp:g}; expected 0 (off) or more; set it to 0 to lift the cap")
    width, height = check_side(size.width, "width"), check_side(size.height, "height")
    max_px = max(1, math.floor(max_mp * PIXELS_PER_MEGAPIXEL + _FLOAT_SLACK))
    if max_mp == 0 or width * height <= max_px:
        return size
    scale = math.sqrt(max_px / (width * height))
    capped_width = max(1, math.floor(width * scale + _FLOAT_SLACK))
    capped_height = max(1, math.floor(height * scale + _FLOAT_SLACK))
    # Only a side held up at 1 px can leave the product above the cap; the other side then gives way.
    return TargetSize(
        min(capped_width, max(1, max_px // capped_height)), min(capped_height, max(1, max_px // capped_width))
    )


def resize(image: torch.Tensor, size: TargetSize, resample: str = "lanczos") -> torch.Tensor:
    """Resampled to exactly `size`: (B, C, H, W) float32 -> (B, C, size.height, size.width) float32 in [0, 1].

    Pillow's antialiased filter, channel by channel in 32-bit float (no 8-bit rounding), half-pixel centres, so
    nothing shifts. The same size in gives the same values out, in a new tensor.
    Raises InputError for a tensor of another shape or dtype, an empty image or an unknown `resample`.
    """
    check_image(image, "image")
    if resample not in RESAMPLES:
        raise InputError(f"resample is {resample!r}; expected one of {', '.join(RESAMPLES)}; choose one of them")
    width, height = check_side(size.width, "target width"), check_side(size.height, "target height")
    batch, channels, in_height, in_width = image.shape
    if (in_width, in_height) == (width, height):
        return image.detach().clamp(0.0, 1.0)  # (B, C, H, W)
    filters = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    planes = image.detach().cpu().numpy()  # (B, C, H, W)
    out = np.empty((batch, channels, height, width), dtype=np.float32)
    for b in range(batch):
        for c in range(channels):
            plane = Image.fromarray(np.ascontiguousarray(planes[b, c]))  # float32 -> mode "F"
            out[b, c] = np.asarray(plane.resize((width, height), filters[resample]))
    np.clip(out, 0.0, 1.0, out=out)
    return torch.from_numpy(out).to(image.device)  # (B, C, height, width)


def pad_to_multiple(image: torch.Tensor, multiple: int) -> tuple[torch.Tensor, Padding]:
    """Right and bottom sides grown to a multiple of `multiple` px: (B, C, H, W) -> (B, C, H + bottom, W + right).

    Mirrored without repeating the edge pixel; a side that is not longer than its pad is replicated instead.
    Returns the image itself (no copy) when nothing is missing. Undo with `crop_to`.
    """
    check_image(image, "image")
    multiple = check_side(multiple, "multiple")
    height, width = image.shape[-2:]
    padding = Padding(right=-width % multiple, bottom=-height % multiple)
    padded = image
    if padding.right:
        padded = F.pad(padded, (0, padding.right, 0, 0), mode=_pad_mode(width, padding.right))
    if padding.bottom:
        padded = F.pad(padded, (0, 0, 0, padding.bottom), mode=_pad_mode(height, padding.bottom))
    return padded, padding


def crop_to(image: torch.Tensor, size: TargetSize) -> torch.Tensor:
    """The top left `size` of the image, a view: (B, C, H, W) -> (B, C, size.height, size.width).

    Raises InputError when the image is smaller than `size`.
    """
    height, width = image.shape[-2:]
    if size.width > width or size.height > height:
        raise InputError(
            f"cannot crop {width} x {height} to {size.width} x {size.height}; expected an image at least that large; "
            "resize it first"
        )
    return image[..., : size.height, : size.width]


def check_side(value: int, name: str) -> int:
    """`value` as a side in pixels. Raises InputError unless it is a whole number, at least 1."""
    try:
        side = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; expected a whole number of pixels; round it first") from None
    if side < 1:
        raise InputError(f"{name} is {side}; expected at least 1 pixel; choose a larger one")
    return side


def check_megapixels(value: float) -> float:
    """`value` as a size by area. Raises InputError for NaN, infinity or a number that is not positive."""
    megapixels = _number(value, "megapixels")
    if megapixels <= 0:
        raise InputError(f"megapixels is {megapixels:g}; expected a number above 0; choose for example 4")
    return megapixels


def check_image(image: torch.Tensor, name: str, channels: int | None = None) -> None:
    """Raises InputError unless `image` is a float32 tensor (B, C, H, W) with no empty side (and C = `channels`)."""
    expected = f"float32 (B, {channels or 'C'}, H, W)"
    if not isinstance(image, torch.Tensor):
        raise InputError(f"{name} is a {type(image).__name__}; expected a tensor {expected}; convert it first")
    shape = tuple(image.shape)
    if len(shape) != 4 or 0 in shape or (channels is not None and shape[1] != channels):
        raise InputError(f"{name} has shape {shape}; expected {expected} with no empty side; reshape it first")
    if image.dtype != torch.float32:
        raise InputError(f"{name} is {image.dtype}; expected {expected}; call .float() first")


def _size_by_edge(width: int, height: int, edge: int, edge_px: int, name: str) -> TargetSize:
    _checked_scale(edge_px / edge, f"{name} {edge} -> {edge_px}: scale")
    # Multiplied before divided, so that the named edge comes out exact and ties round as they would on paper.
    return TargetSize(_round_side(width * edge_px / edge), _round_side(height * edge_px / edge))


def _pad_mode(side: int, pad: int) -> str:
    return "reflect" if side > pad else "replicate"


def _round_side(value: float) -> int:
    return max(1, math.floor(value + 0.5))


def _number(value: float, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; expected a number; correct it") from None
    if not math.isfinite(number):
        raise InputError(f"{name} is {number}; expected a finite number; correct it")
    return number


def _checked_scale(value: float, name: str) -> float:
    scale = _number(value, name)
    if not MIN_SCALE - _FLOAT_SLACK <= scale <= MAX_SCALE + _FLOAT_SLACK:
        raise InputError(f"{name} is {scale:.4g}; expected {MIN_SCALE:g} to {MAX_SCALE:g}; choose a size in that range")
    return scale
