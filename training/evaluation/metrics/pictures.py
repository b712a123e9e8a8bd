"""Fidelity (PSNR, SSIM, GMSD), sharpness (mean gradient, gradient of the flat parts) and the patch grid's peak.

Pictures are (H, W, 3) RGB, uint8 or float in [0, 1]; quantise floats to 8 bit beforehand. No border is cut.
"""

import cv2
import numpy as np

from teasr_core.errors import InputError
from teasr_core.image.luma import check_same_size, gradient_map, psnr_y, to_full_y, to_studio_y

__all__ = ["flat_gradient", "gmsd", "gradient_map", "grid_peak", "mean_gradient", "psnr_y", "ssim_y"]

_SSIM_RADIUS = 5
_SSIM_SIGMA = 1.5
_GMSD_C = 170.0
_LEAK_BINS = 2  # a line under a Hann window fills its own bin and one on each side
_ROUNDING = (219.0 / 255.0) ** 2 / 12.0  # variance of studio Y by rounding to 8 bit; below it nothing shows


def ssim_y(a: np.ndarray, b: np.ndarray) -> float:
    """Mean SSIM of the studio-range Y, at most 1: 11x11 Gaussian window (sigma 1.5), valid region, data range 255.

    Raises InputError for pictures of different sizes or a side under 11 pixels.
    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13.
    """
    check_same_size(a, b)
    if min(a.shape[:2]) < 2 * _SSIM_RADIUS + 1:
        raise InputError(f"SSIM: found {a.shape[1]}x{a.shape[0]} pixels, expected at least 11x11; use a larger picture")
    x, y = to_studio_y(a), to_studio_y(b)
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    cov = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    ssim = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(ssim.mean())


def gmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Gradient magnitude similarity deviation, 0 for equal pictures, larger is worse.

    Full-range Y halved by 2x2 means, Prewitt gradients / 3, c = 170, standard deviation of the similarity map.
    Raises InputError for pictures of different sizes or a side under 4 pixels.
    Source: Xue et al. 2014, "Gradient Magnitude Similarity Deviation", eq. 1-6.
    """
    check_same_size(a, b)
    if min(a.shape[:2]) < 4:
        raise InputError(f"GMSD: found {a.shape[1]}x{a.shape[0]} pixels, expected at least 4x4; use a larger picture")
    ga, gb = _prewitt(_halve(to_full_y(a))), _prewitt(_halve(to_full_y(b)))
    similarity = (2.0 * ga * gb + _GMSD_C) / (ga**2 + gb**2 + _GMSD_C)
    return float(similarity.std(ddof=1))


def mean_gradient(rgb: np.ndarray) -> float:
    """The mean of `gradient_map` in 8-bit levels per pixel: how sharp the picture is; noise counts as sharpness."""
    return float(gradient_map(rgb).mean())


def flat_gradient(candidate: np.ndarray, hq: np.ndarray, block: int = 16, share: float = 0.10) -> float:
    """Mean gradient of `candidate` on the `share` of `block`-pixel squares where `hq` has the least.

    Compared with `flat_gradient(hq, hq)` it shows left-over noise, because the original has no detail there.
    The unit is 8-bit levels per pixel. Incomplete blocks at the right and bottom are left out.
    Raises InputError for pictures of different sizes or without one whole block.
    """
    check_same_size(candidate, hq)
    flatness = _block_means(gradient_map(hq), block)
    if flatness.size == 0:
        raise InputError(
            f"flat_gradient: found a picture of {hq.shape[1]}x{hq.shape[0]}, expected more than {block} pixels a side; "
            "use a larger picture or a smaller block"
        )
    flattest = np.argsort(flatness.ravel(), kind="stable")[: max(1, round(share * flatness.size))]
    return float(_block_means(gradient_map(candidate), block).ravel()[flattest].mean())


def grid_peak(picture: np.ndarray, pitch_px: int = 8) -> float:
    """How far a lattice of `pitch_px` stands out of the spectrum of the studio-range Y: 1 is no lattice.

    The power of all rows under a Hann window is averaged, then of all columns, so that a lattice counts wherever it
    lies. At each harmonic of the pitch up to Nyquist, its amplitude is divided by the geometric mean of the
    frequencies around it; the largest of these ratios is returned. It is the same for a shifted lattice, and a
    constant picture has 1. What is left of the last incomplete pitch at the right and bottom is not seen.
    Cosine stripes of amplitude A in white noise of variance s over W columns, both in Y: sqrt(1 + A^2 W / (6 s)).
    Raises InputError for a pitch below 2 or a side under eight pitches.
    """
    height, width = (side - side % pitch_px if pitch_px > 1 else 0 for side in picture.shape[:2])
    if min(height, width) < 8 * pitch_px or pitch_px < 2:
        raise InputError(
            f"grid_peak: found {picture.shape[1]}x{picture.shape[0]} pixels and a pitch of {pitch_px}, expected a "
            "pitch of at least 2 and eight pitches a side; use a larger picture"
        )
    y = to_studio_y(picture)[:height, :width]
    return max(_line_peak(y, pitch_px), _line_peak(y.T, pitch_px))


def _line_peak(y: np.ndarray, pitch_px: int) -> float:
    """`grid_peak` along the rows of (H, W), W a multiple of the pitch."""
    width = y.shape[1]
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(width) / width)  # periodic: a constant stays in bins 0 and 1
    power = np.mean(np.abs(np.fft.rfft((y - y.mean(axis=1, keepdims=True)) * window, axis=1)) ** 2, axis=0)
    power += _ROUNDING * np.sum(window**2)
    spacing = width // pitch_px
    offsets = np.arange(_LEAK_BINS + 1, max(_LEAK_BINS + 3, spacing // 4 + 1))
    peaks = []
    for line in range(spacing, width // 2 + 1, spacing):
        around = np.concatenate([line - offsets, line + offsets])
        around = power[around[around < len(power)]]
        peaks.append(np.sqrt(power[line] / np.exp(np.mean(np.log(around)))))
    return float(max(peaks))


def _window(y: np.ndarray) -> np.ndarray:
    taps = cv2.getGaussianKernel(2 * _SSIM_RADIUS + 1, _SSIM_SIGMA, cv2.CV_64F)
    r = _SSIM_RADIUS
    return cv2.sepFilter2D(y, cv2.CV_64F, taps, taps)[r:-r, r:-r]


def _halve(y: np.ndarray) -> np.ndarray:
    height, width = (side - side % 2 for side in y.shape)
    return _block_means(y[:height, :width], 2)


def _prewitt(y: np.ndarray) -> np.ndarray:
    kernel = np.repeat(np.array([[1.0, 0.0, -1.0]]) / 3.0, 3, axis=0)
    # Zeros outside, as in the published code: it weighs the border like a strong edge, in both pictures.
    along = cv2.filter2D(y, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT)
    across = cv2.filter2D(y, cv2.CV_64F, kernel.T, borderType=cv2.BORDER_CONSTANT)
    return np.hypot(along, across)


def _block_means(values: np.ndarray, block: int) -> np.ndarray:
    rows, columns = values.shape[0] // block, values.shape[1] // block
    return values[: rows * block, : columns * block].reshape(rows, block, columns, block).mean(axis=(1, 3))
