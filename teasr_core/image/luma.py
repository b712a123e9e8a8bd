"""RGB to luma, the one channel most picture metrics look at."""

from __future__ import annotations

import numpy as np

from ..errors import InputError


def unit_rgb(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, or float in [0, 1], to float64 in [0, 1]. Raises InputError for another shape or dtype."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InputError(f"metric: found a picture of shape {rgb.shape}, expected (H, W, 3) RGB; convert it first")
    if rgb.dtype == np.uint8:
        return rgb.astype(np.float64) / 255.0
    if not np.issubdtype(rgb.dtype, np.floating):
        raise InputError(f"metric: found pixels of {rgb.dtype}, expected uint8 or float in [0, 1]; convert them first")
    return rgb.astype(np.float64)


def to_studio_y(rgb: np.ndarray) -> np.ndarray:
    """BT.601 studio-range luma: (H, W, 3) RGB, uint8 or float in [0, 1], to (H, W) float64 in [16, 235].

    Not rounded. Quantise float pictures to 8 bit beforehand, as saving them would.
    Source: ITU-R BT.601; MATLAB's rgb2ycbcr, on which published super-resolution PSNR is computed.
    """
    return unit_rgb(rgb) @ np.array([65.481, 128.553, 24.966]) + 16.0


def to_full_y(rgb: np.ndarray) -> np.ndarray:
    """Full-range luma: (H, W, 3) RGB, uint8 or float in [0, 1], to (H, W) float64 in [0, 255].

    Source: BT.601 weights as in MATLAB's rgb2gray, on which GMSD and NIQE are defined.
    """
    return unit_rgb(rgb) @ np.array([0.298936, 0.587043, 0.114021]) * 255.0
