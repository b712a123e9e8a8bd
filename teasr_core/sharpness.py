"""One figure for how sharp a picture is: the mean gradient of its luma, as `eval` reports it."""

from __future__ import annotations

import torch

from .geometry import check_image

# ITU-R BT.601, studio range: Y in [16, 235] from RGB in [0, 1].
_STUDIO_Y = (65.481, 128.553, 24.966)


def mean_gradient(image: torch.Tensor) -> float:
    """Mean magnitude of the forward differences of Y, in 8-bit levels per pixel; noise counts as sharpness.

    image: (B, 3, H, W) in [0, 1], rounded here to 8 bits as a saved picture is. A picture without two pixels in both
    directions has 0. The same as `training.evaluation.metrics.mean_gradient`.
    """
    check_image(image, "image", channels=3)
    if min(image.shape[-2:]) < 2:
        return 0.0
    rgb = (image.clamp(0, 1) * 255 + 0.5).floor().double() / 255  # (B, 3, H, W)
    y = torch.einsum("bchw,c->bhw", rgb, torch.tensor(_STUDIO_Y, dtype=rgb.dtype, device=rgb.device))  # (B, H, W)
    right = y[:, :-1, 1:] - y[:, :-1, :-1]
    down = y[:, 1:, :-1] - y[:, :-1, :-1]
    return float(torch.hypot(right, down).mean())
