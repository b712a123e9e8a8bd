"""The pixel operations of the degradation: filter, resize, noise, JPEG.

All take and return (H, W, 3) float32 RGB, nominally in [0, 1]; resizing and filtering may overshoot, noise and JPEG
clip to [0, 1].
Source: Wang et al. 2021 (Real-ESRGAN, arXiv 2107.10833), section 3.
"""

import cv2
import numpy as np

INTERPOLATIONS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601 luma; read-only
GREY_WEIGHTS.setflags(write=False)

# Above this mean the third-order normal expansion of a Poisson variable is good to a few thousandths in distribution
# and ten times faster than drawing it exactly.
_EXACT_POISSON_BELOW = 12.0


def filter_image(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel with `kernel` ((K, K) float32, K odd), borders mirrored. Same shape out."""
    return cv2.filter2D(image, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize_image(image: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """Resize to (height, width, 3) with `mode` of `INTERPOLATIONS`; bilinear and bicubic alias when they shrink.

    The aliasing is intended, because real pictures often have it.
    """
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[mode])


def add_gaussian_noise(image: np.ndarray, sigma: float, is_grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Add N(0, sigma^2), sigma in 8-bit levels; one value for the three channels where `is_grey`. Clipped to [0, 1]."""
    height, width, channels = image.shape
    noise = rng.standard_normal((height, width, 1 if is_grey else channels), dtype=np.float32)
    return _add_clipped(image, noise * np.float32(sigma / 255.0))


def add_poisson_noise(image: np.ndarray, scale: float, is_grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Add `scale` times shot noise: Poisson(v p) / v - p for 8-bit pixels p, with v = 2^ceil(log2(levels in use)).

    `is_grey` takes p from the luma and gives the three channels the same noise. Clipped to [0, 1].
    Source: Real-ESRGAN section 3.2 (v as in scikit-image's random_noise).
    """
    clean = np.clip(image, 0.0, 1.0)
    if is_grey:
        clean = (clean @ GREY_WEIGHTS)[..., None]  # (H, W, 1)
    levels = np.rint(clean * 255.0)
    used = int(np.count_nonzero(np.bincount(levels.astype(np.uint8).ravel(), minlength=256)))
    peak = np.float32(2.0 ** np.ceil(np.log2(used)))
    mean = levels * (peak / np.float32(255.0))
    noise = poisson_draws(mean, rng) - mean
    return _add_clipped(image, noise * np.float32(scale / peak))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress with libjpeg (4:2:0) at `quality` 1..100. Out: 8-bit levels as float32 in [0, 1]."""
    bgr = cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded two lines above
    pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return pixels.astype(np.float32) * np.float32(1.0 / 255.0)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round float RGB in [0, 1] to uint8, clipping what lies outside."""
    return np.clip(np.rint(image * np.float32(255.0)), 0.0, 255.0).astype(np.uint8)


def _add_clipped(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    out = image + noise
    return np.clip(out, 0.0, 1.0, out=out)


def poisson_draws(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson draws of the given means, float32. Large means by the Cornish-Fisher expansion, small ones exactly."""
    z = rng.standard_normal(mean.shape, dtype=np.float32)
    root = np.sqrt(mean)
    draws = np.rint(mean + root * z + (z * z - 1.0) / 6.0)
    small = mean < _EXACT_POISSON_BELOW
    draws[small] = rng.poisson(mean[small])
    return draws
