"""Luma, the one channel that most picture metrics look at, and its gradient."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from .levels import to_levels


def unit_rgb(rgb: np.ndarray) -> np.ndarray:
    """Convert (H, W, 3) uint8, or float in [0, 1], to float64 in [0, 1]. Raises InputError for anything else."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InputError(f"metric: found a picture of shape {rgb.shape}, expected (H, W, 3) RGB; convert it first")
    if rgb.dtype == np.uint8:
        return rgb.astype(np.float64) / 255.0
    if not np.issubdtype(rgb.dtype, np.floating):
        raise InputError(f"metric: found pixels of {rgb.dtype}, expected uint8 or float in [0, 1]; convert them first")
    return rgb.astype(np.float64)


def to_studio_y(rgb: np.ndarray) -> np.ndarray:
    """BT.601 studio-range luma: (H, W, 3) RGB, uint8 or float in [0, 1], to (H, W) float64 in [16, 235].

    The result is not rounded. Round float pictures to 8 bits first, as a saved file is.
    Source: ITU-R BT.601; MATLAB's rgb2ycbcr, on which published super-resolution PSNR is computed.
    """
    return unit_rgb(rgb) @ np.array([65.481, 128.553, 24.966]) + 16.0


def to_full_y(rgb: np.ndarray) -> np.ndarray:
    """Full-range luma: (H, W, 3) RGB, uint8 or float in [0, 1], to (H, W) float64 in [0, 255].

    Source: BT.601 weights as in MATLAB's rgb2gray, on which GMSD and NIQE are defined.
    """
    return unit_rgb(rgb) @ np.array([0.298936, 0.587043, 0.114021]) * 255.0


def psnr_y(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of the studio-range Y of two (H, W, 3) pictures, peak 255; infinite for equal pictures.

    They are uint8, or float in [0, 1]. Raises InputError for pictures of different sizes.
    """
    check_same_size(a, b)
    error = float(np.mean((to_studio_y(a) - to_studio_y(b)) ** 2))
    return float("inf") if error == 0.0 else 10.0 * float(np.log10(255.0**2 / error))


def check_same_size(a: np.ndarray, b: np.ndarray) -> None:
    """InputError where two pictures cannot be compared."""
    if a.shape != b.shape:
        raise InputError(f"metric: found pictures of {a.shape} and {b.shape}, expected equal sizes; crop or resize one")


def gradient_map(rgb: np.ndarray) -> np.ndarray:
    """Return the size of the forward differences of studio-range Y in 8-bit levels: (H, W, 3) to (H - 1, W - 1)."""
    y = to_studio_y(rgb)
    return np.hypot(y[:-1, 1:] - y[:-1, :-1], y[1:, :-1] - y[:-1, :-1])


def mean_gradient(image: torch.Tensor) -> float:
    """Return the mean of `gradient_map` over pictures (B, 3, H, W) in [0, 1], rounded to 8 bits as a saved file is.

    The unit is 8-bit levels per pixel. A picture with a side of one pixel has the value 0.
    """
    if min(image.shape[-2:]) < 2:
        return 0.0
    pixels = to_levels(image).permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    return float(np.mean([gradient_map(picture) for picture in pixels]))
