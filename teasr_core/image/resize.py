"""Resizing to an exact size, padding to whole tokens, and cropping back.

Images are float32 tensors (B, C, H, W) in [0, 1]. No function changes its input or draws a random number.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import InputError
from .target_size import TargetSize, check_side

RESAMPLES = ("lanczos", "bicubic")


@dataclass(frozen=True)
class Padding:
    """Pixels added on the right and at the bottom; nothing is ever added on the left or at the top."""

    right: int
    bottom: int


def resize(image: torch.Tensor, size: TargetSize, resample: str = "lanczos") -> torch.Tensor:
    """Resample to exactly `size`: (B, C, H, W) float32 -> (B, C, size.height, size.width) float32 in [0, 1].

    Pillow's antialiased filter runs on each channel in 32-bit float, so nothing is rounded to 8 bits; pixel centres lie
    at half pixels, so nothing shifts. An image that already has this size keeps its values, in a new tensor.
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
    """Pad right and bottom to a multiple of `multiple` px: (B, C, H, W) -> (B, C, H + bottom, W + right).

    The padding mirrors the image without repeating the edge pixel; where a side is not longer than its padding, it
    repeats the edge pixel instead. An image that needs no padding is returned itself. `crop_to` undoes it.
    """
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
    """Return a view of the top left `size` of the image: (B, C, H, W) -> (B, C, size.height, size.width).

    Raises InputError when the image is smaller than `size`.
    """
    height, width = image.shape[-2:]
    if size.width > width or size.height > height:
        raise InputError(
            f"cannot crop {width} x {height} to {size.width} x {size.height}; expected an image at least that large; "
            "resize it first"
        )
    return image[..., : size.height, : size.width]


def check_image(image: torch.Tensor, name: str, channels: int | None = None) -> None:
    """Raise InputError unless `image` is a float32 tensor (B, C, H, W) with no empty side (and C = `channels`).

    It is called where a picture enters, not between the functions of this package.
    """
    expected = f"float32 (B, {channels or 'C'}, H, W)"
    if not isinstance(image, torch.Tensor):
        raise InputError(f"{name} is a {type(image).__name__}; expected a tensor {expected}; convert it first")
    shape = tuple(image.shape)
    if len(shape) != 4 or 0 in shape or (channels is not None and shape[1] != channels):
        raise InputError(f"{name} has shape {shape}; expected {expected} with no empty side; reshape it first")
    if image.dtype != torch.float32:
        raise InputError(f"{name} is {image.dtype}; expected {expected}; call .float() first")


def _pad_mode(side: int, pad: int) -> str:
    return "reflect" if side > pad else "replicate"
