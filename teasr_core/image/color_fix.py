"""Colour fix and the strength blend, on the whole merged image in float pixels.

A generative model drifts in colour; the resized input does not. Each method keeps the detail of `image` and takes
the colour of `reference`. Images are float32 tensors (B, 3, H, W) in [0, 1]; none is modified.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ..errors import InputError
from .cielab import lab_to_rgb, rgb_to_lab
from .flat_areas import keep_flat_
from .resize import check_image
from .strips import STRIP_PX, strips_with_reach

COLOR_FIXES = ("off", "wavelet", "adain", "lab")
WAVELET_LEVELS = 5
_LOW_BAND_REACH = (1 << WAVELET_LEVELS) - 1  # px on each side: the taps' distances 1 + 2 + 4 ... added up

# A plane with a smaller spread is flat up to rounding. Its gain stays 1, so that noise does not grow into a pattern.
_FLAT_STD_RGB = 1e-3  # a quarter of an 8-bit step, on [0, 1]
_FLAT_STD_LAB = 0.1  # about the same, on L* 0..100

_STRIP_PX = STRIP_PX  # strips bound the memory: about 12 MB of L*a*b* at a time for an image of any size


def fix_color(image: torch.Tensor, reference: torch.Tensor, method: str, strength: float = 1.0) -> torch.Tensor:
    """Give `image` the colour of `reference`: (B, 3, H, W) float32 -> (B, 3, H, W) float32 in [0, 1].

    image: the restored picture. reference: the resized input, the same H and W, batch B or 1.
    method:
      off      returns the image as it is.
      wavelet  adds the low band of the reference to the high bands of the image, in 5 a-trous levels (as in StableSR,
               arXiv 2305.07015). It follows local colour, so a local tint of the reference is taken over too.
      adain    gives every RGB channel the reference's mean and standard deviation (Huang and Belongie, arXiv
               1703.06868).
      lab      gives L*, a* and b* (CIE 1976, D65, sRGB) the reference's mean and standard deviation (after Reinhard et
               al. 2001, in CIELAB), so that lightness, contrast and chroma are matched.
      With adain and lab, a flat plane of `image` keeps its spread and only takes the mean.
      With every method but off, the result equals the reference where that is one flat colour (`flat_areas`).
    strength: from 0, which returns the image itself bit for bit, linearly to 1, the full fix.
    Raises InputError for wrong shapes, dtypes, an unknown method or a strength outside 0..1.
    """
    check_image(image, "image", channels=3)
    check_image(reference, "reference", channels=3)
    if reference.shape[2:] != image.shape[2:] or reference.shape[0] not in (1, image.shape[0]):
        raise InputError(
            f"reference has shape {tuple(reference.shape)}, image {tuple(image.shape)}; expected the same height and "
            "width and a batch of 1 or the image's; crop or resize one of them first"
        )
    if method not in COLOR_FIXES:
        raise InputError(f"color_fix is {method!r}; expected one of {', '.join(COLOR_FIXES)}; choose one of them")
    strength = _checked_strength(strength, "color_strength")
    if method == "off" or strength == 0:
        return image
    fix = {"wavelet": _wavelet, "adain": _adain, "lab": _lab}[method]
    out = torch.empty_like(image)  # (B, 3, H, W)
    for b in range(image.shape[0]):
        one_reference = reference[b if reference.shape[0] > 1 else 0].to(image.device)  # (3, H, W)
        fix(image[b], one_reference, out[b])
        keep_flat_(out[b], one_reference)
    out.clamp_(0.0, 1.0)
    return out if strength == 1 else torch.lerp(image, out, strength).clamp_(0.0, 1.0)


def apply_strength(resized: torch.Tensor, restored: torch.Tensor | None, strength: float) -> torch.Tensor:
    """Return resized + strength * (restored - resized), all (B, 3, H, W) float32
    (docs/decisions.md#strength-and-colour).

    strength: 0 to 1. 0 returns the tensor `resized` itself and 1 the tensor `restored` itself. At 0 `restored` may be
    None, because no model has to run. Raises InputError for other strengths, unequal shapes or a missing `restored`.
    """
    strength = _checked_strength(strength, "strength")
    if strength == 0:
        return resized
    if restored is None:
        raise InputError(f"strength is {strength:g} and there is no restored image; expected one; run the model first")
    if restored.shape != resized.shape:
        raise InputError(
            f"restored has shape {tuple(restored.shape)}, resized {tuple(resized.shape)}; expected equal shapes; "
            "crop the restored image first"
        )
    return restored if strength == 1 else torch.lerp(resized, restored, strength).clamp_(0.0, 1.0)


# Each method writes its result to `out` (3, H, W) without clamping it.


def _wavelet(image: torch.Tensor, reference: torch.Tensor, out: torch.Tensor) -> None:
    # The low band is linear, so high(image) + low(reference) = image + low(reference - image). This needs one
    # decomposition instead of two and stores no bands, and an image equal to its reference stays exactly as it is.
    # A strip is read with the rows that its blur reaches, so that the result does not depend on the strips.
    for c in range(image.shape[0]):
        for rows, wider, inside in strips_with_reach(image, _LOW_BAND_REACH, _STRIP_PX):
            low = _low_band(reference[c, wider] - image[c, wider])[inside]  # (rows, W)
            torch.add(image[c, rows], low, out=out[c, rows])


def _low_band(plane: torch.Tensor) -> torch.Tensor:
    """Return the low band of (H, W) after WAVELET_LEVELS a-trous levels: a blur of about 13 px standard deviation.

    Each level is [1 2 1] / 4 down and across with taps 1, 2, 4 ... px apart and the edge replicated, at any size.
    """
    height, width = plane.shape
    for level in range(WAVELET_LEVELS):
        gap = 1 << level
        tall = F.pad(plane[None], (0, 0, gap, gap), mode="replicate")[0]  # (H + 2 gap, W)
        plane = (tall[:height] + tall[2 * gap :]).mul_(0.25).add_(plane, alpha=0.5)  # (H, W)
        wide = F.pad(plane[None], (gap, gap, 0, 0), mode="replicate")[0]  # (H, W + 2 gap)
        plane = (wide[:, :width] + wide[:, 2 * gap :]).mul_(0.25).add_(plane, alpha=0.5)  # (H, W)
    return plane


def _adain(image: torch.Tensor, reference: torch.Tensor, out: torch.Tensor) -> None:
    mean, std = _statistics([image])
    target_mean, target_std = _statistics([reference])
    gain, offset = _match(mean, std, target_mean, target_std, _FLAT_STD_RGB)
    torch.addcmul(offset.to(image), image, gain.to(image), out=out)


def _lab(image: torch.Tensor, reference: torch.Tensor, out: torch.Tensor) -> None:
    mean, std = _statistics(rgb_to_lab(strip) for strip in _strips(image))
    target_mean, target_std = _statistics(rgb_to_lab(strip) for strip in _strips(reference))
    gain, offset = _match(mean, std, target_mean, target_std, _FLAT_STD_LAB)
    for strip, out_strip in zip(_strips(image), _strips(out), strict=True):
        lab = torch.addcmul(offset.to(image), rgb_to_lab(strip), gain.to(image))  # (3, rows, W)
        out_strip.copy_(lab_to_rgb(lab))


def _strips(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(3, H, W) as views (3, rows, W) of at most about _STRIP_PX pixels."""
    return image.split(max(1, _STRIP_PX // image.shape[2]), dim=1)


def _statistics(strips: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population standard deviation of every channel over (3, rows, W) strips, float64 (3, 1, 1).

    The sums run on the CPU in float64, which not every device has; float32 sums over millions of pixels drift.
    """
    count, total, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for strip in strips:
        for c in range(3):
            values = strip[c].cpu().double()  # (rows, W)
            total[c] += values.sum()
            squares[c] += values.square_().sum()
        count += strip[0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp_(min=0.0).sqrt_()
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def _match(mean, std, target_mean, target_std, flat_std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain and offset that turn one mean and spread into another; see _FLAT_STD_RGB for flat planes."""
    gain = torch.where(std > flat_std, target_std / std.clamp(min=flat_std), torch.ones_like(std))
    return gain, target_mean - gain * mean


def _checked_strength(strength: float, name: str) -> float:
    try:
        value = float(strength)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value <= 1.0:  # also false for NaN
        raise InputError(f"{name} is {strength!r}; expected a number from 0 to 1; choose one")
    return value
