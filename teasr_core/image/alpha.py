"""Transparency is split off and resampled on its own; the colour under it is filled, so that no dark fringe appears.

Alpha is straight (not premultiplied), 0 = transparent, 1 = opaque; float32 (B, 1, H, W) in [0, 1].
"""

import torch
import torch.nn.functional as F

from ..errors import InputError
from .resize import check_image, resize
from .target_size import TargetSize

_SNAP = 1e-6  # filter weights sum to 1 only up to rounding: opaque must stay exactly opaque


def split_alpha(rgba: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 4, H, W) float32 -> rgb (B, 3, H, W), alpha (B, 1, H, W), both views. Raises InputError for other shapes."""
    check_image(rgba, "image", channels=4)
    return rgba[:, :3], rgba[:, 3:]


def bleed_rgb(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Fill the fully transparent pixels with the colour of the nearest visible ones.

    rgb (B, 3, H, W) and alpha (B, 1, H, W), float32 -> (B, 3, H, W). Pixels with alpha above 0 stay the same bit for
    bit, and so does an image without a visible pixel. The colour under alpha 0 is arbitrary, usually black, and a
    resampling filter or a network would mix it into the visible edge.
    Method: pull-push pyramid (Gortler et al. 1996, The Lumigraph): alpha-weighted means at halved sizes, then every
    hole takes the finest level that saw a visible pixel.
    Raises InputError for wrong shapes.
    """
    check_image(rgb, "image", channels=3)
    check_image(alpha, "alpha", channels=1)
    if alpha.shape[0] != rgb.shape[0] or alpha.shape[2:] != rgb.shape[2:]:
        raise InputError(
            f"alpha has shape {tuple(alpha.shape)}, image {tuple(rgb.shape)}; expected the same batch, height and "
            "width; resize the alpha first"
        )
    out = rgb.clone()  # (B, 3, H, W)
    for b in range(rgb.shape[0]):
        hole = alpha[b, 0] <= 0  # (H, W)
        if hole.any() and not hole.all():
            filled = _pull_push(rgb[b : b + 1], alpha[b : b + 1].clamp(min=0.0))  # (1, 3, H, W)
            out[b] = torch.where(hole, filled[0], rgb[b])
    return out


def resize_alpha(alpha: torch.Tensor, size: TargetSize, resample: str = "lanczos") -> torch.Tensor:
    """(B, 1, H, W) float32 -> (B, 1, size.height, size.width) float32 in [0, 1].

    Where the filter sees only opaque pixels, the result is exactly 1; where it sees only transparent ones, exactly 0.
    Raises InputError for wrong shapes or an unknown `resample` ("lanczos" or "bicubic").
    """
    check_image(alpha, "alpha", channels=1)
    resized = resize(alpha, size, resample)  # (B, 1, height, width)
    resized[resized < _SNAP] = 0.0
    resized[resized > 1.0 - _SNAP] = 1.0
    return resized


def _pull_push(rgb: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) and (1, 1, H, W) >= 0, not all 0 -> (1, 3, H, W), defined everywhere."""
    if not (weight <= 0).any():
        return rgb
    # Means can stand for sums, because colour and weight are divided by the same count. A cell with any visible pixel
    # counts fully on the next level, so that faint alpha does not fade out on the way.
    sums = F.avg_pool2d(rgb * weight, 2, ceil_mode=True, count_include_pad=False)  # (1, 3, H/2, W/2)
    total = F.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)  # (1, 1, H/2, W/2)
    seen = total > 0  # (1, 1, H/2, W/2)
    mean = torch.where(seen, sums / total.where(seen, torch.ones_like(total)), torch.zeros_like(sums))
    coarse = _pull_push(mean, seen.to(weight))  # (1, 3, H/2, W/2), its holes filled
    up = F.interpolate(coarse, size=rgb.shape[-2:], mode="bilinear", align_corners=False)  # (1, 3, H, W)
    return torch.where(weight > 0, rgb, up)
