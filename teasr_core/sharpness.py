"""How sharp a picture is: the gradient of its luma, noise included. `eval`'s figures are made of the same map."""

from __future__ import annotations

import numpy as np
import torch

from .image.luma import to_studio_y
from .image.resize import check_image


def gradient_map(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) to (H - 1, W - 1): magnitude of the forward differences of the studio-range Y, in 8-bit levels."""
    y = to_studio_y(rgb)
    return np.hypot(y[:-1, 1:] - y[:-1, :-1], y[1:, :-1] - y[:-1, :-1])


def mean_gradient(image: torch.Tensor) -> float:
    """Mean of `gradient_map` over pictures (B, 3, H, W) in [0, 1], rounded to 8 bits as saved ones are.

    In 8-bit levels per pixel. A picture without two pixels in both directions has 0.
    """
    check_image(image, "image", channels=3)
    if min(image.shape[-2:]) < 2:
        return 0.0
    pixels = (image.clamp(0, 1) * 255 + 0.5).floor().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    return float(np.mean([gradient_map(picture) for picture in pixels]))
