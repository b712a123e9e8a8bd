"""NIQE, a no-reference metric: how far the local statistics of a picture are from those of good photographs.

Source: Mittal, Soundararajan, Bovik 2013, "Making a 'Completely Blind' Image Quality Analyzer", and the pristine
model published with it. Smaller is better. It measures naturalness, not fidelity to the original.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.special import gamma

from teasr_core.errors import InputError
from teasr_core.image.luma import to_full_y

BLOCK_PX = 96
FEATURES_PER_SCALE = 18


def niqe(rgb: np.ndarray, params_path: str | Path) -> float:
    """NIQE of an (H, W, 3) RGB picture, uint8 or float in [0, 1]; smaller is better.

    params_path: .npz with mu_pris_param (1, 36), cov_pris_param (36, 36) and gaussian_window (7, 7).
    Raises InputError for a missing or other file, and for a picture with fewer than two 96-pixel blocks that are
    not constant (a covariance needs two).
    """
    mean_pristine, cov_pristine, window = load_niqe_model(params_path)
    features = niqe_features(rgb, window)
    features = features[np.isfinite(features).all(axis=1)]  # constant blocks have no distribution to fit
    if len(features) < 2:
        raise InputError(
            f"NIQE: found {len(features)} textured blocks of {BLOCK_PX} pixels in a picture of "
            f"{rgb.shape[1]}x{rgb.shape[0]}, expected at least 2; use a larger picture"
        )
    gap = mean_pristine - features.mean(axis=0)  # (36,)
    pooled = (cov_pristine + np.cov(features, rowvar=False)) / 2.0
    return float(np.sqrt(gap @ np.linalg.pinv(pooled) @ gap))


def niqe_features(rgb: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB to (blocks, 36): 18 features of each 96-pixel block at full and at half size.

    window: the (K, K) local weighting, sums to 1. A constant block gives a row that is not finite. Parts of the
    picture beyond the last whole block are left out. Raises InputError for a picture without one whole block.
    """
    y = np.rint(to_full_y(rgb))
    rows, columns = y.shape[0] // BLOCK_PX, y.shape[1] // BLOCK_PX
    if rows * columns == 0:
        raise InputError(
            f"NIQE: found a picture of {rgb.shape[1]}x{rgb.shape[0]}, expected at least {BLOCK_PX} pixels a side; "
            "use a larger picture"
        )
    y = y[: rows * BLOCK_PX, : columns * BLOCK_PX]
    scales = []
    for block in (BLOCK_PX, BLOCK_PX // 2):
        if block != BLOCK_PX:
            y = _halve(y)
        normalised = mscn(y, window)
        grid = normalised.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(-1, block, block)
        scales.append(np.stack([_block_features(one) for one in grid]))  # (blocks, 18)
    return np.concatenate(scales, axis=1)  # (blocks, 36)


def mscn(y: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Mean-subtracted, contrast-normalised luma, (H, W) in 0..255 to (H, W): (y - mean) / (deviation + 1)."""
    mean = cv2.filter2D(y, cv2.CV_64F, window, borderType=cv2.BORDER_REPLICATE)
    square = cv2.filter2D(y * y, cv2.CV_64F, window, borderType=cv2.BORDER_REPLICATE)
    return (y - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1.0)


def fit_aggd(values: np.ndarray) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments: shape alpha in [0.2, 10], left and right scale beta.

    NaN where one side of zero has no value. Source: Lasmar et al. 2009, as used by Mittal et al. 2013, eq. 4-8.
    """
    left, right = values[values < 0.0], values[values > 0.0]
    if left.size == 0 or right.size == 0:
        return np.nan, np.nan, np.nan
    sd_left, sd_right = np.sqrt(np.mean(left**2)), np.sqrt(np.mean(right**2))
    ratio = sd_left / sd_right
    r_hat = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    r_hat *= (ratio**3 + 1.0) * (ratio + 1.0) / (ratio**2 + 1.0) ** 2
    shapes, r_of_shape = _moment_ratios()
    alpha = float(shapes[np.argmin(np.abs(r_of_shape - r_hat))])
    to_beta = float(np.sqrt(gamma(1.0 / alpha) / gamma(3.0 / alpha)))
    return alpha, float(sd_left) * to_beta, float(sd_right) * to_beta


def load_niqe_model(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (36,), covariance (36, 36) and window (K, K) of the published model. Raises the InputError of `niqe`."""
    wanted = "mu_pris_param, cov_pris_param and gaussian_window of the published NIQE model (.npz)"
    if not Path(path).is_file():
        raise InputError(f"NIQE: found no file at {path}, expected {wanted}; give the path of that file")
    try:
        with np.load(path) as data:
            mean, cov, window = data["mu_pris_param"].ravel(), data["cov_pris_param"], data["gaussian_window"]
    except (KeyError, ValueError, OSError) as error:
        reason = f"NIQE: {path} cannot be used ({error})"
        raise InputError(f"{reason}, expected {wanted}; give the path of that file") from None
    count = 2 * FEATURES_PER_SCALE
    if mean.shape != (count,) or cov.shape != (count, count) or window.ndim != 2:
        found = f"{mean.shape}, {cov.shape} and {window.shape}"
        raise InputError(f"NIQE: {path} holds shapes {found}, expected {wanted}; give the path of that file")
    return mean, cov, window


def _moment_ratios() -> tuple[np.ndarray, np.ndarray]:
    shapes = np.arange(200, 10001) / 1000.0
    return shapes, gamma(2.0 / shapes) ** 2 / (gamma(1.0 / shapes) * gamma(3.0 / shapes))


def _block_features(block: np.ndarray) -> np.ndarray:
    """18 features: the fit of the block itself, then of its products with four shifted copies (E, S, SE, SW)."""
    alpha, beta_left, beta_right = fit_aggd(block)
    features = [alpha, (beta_left + beta_right) / 2.0]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, beta_left, beta_right = fit_aggd(block * np.roll(block, shift, axis=(0, 1)))
        mean = (beta_right - beta_left) * gamma(2.0 / alpha) / gamma(1.0 / alpha)
        features += [alpha, mean, beta_left, beta_right]
    return np.array(features)  # (18,)


def _halve(y: np.ndarray) -> np.ndarray:
    """Half size by the antialiased bicubic of a = -0.5 that the published model was made with."""
    height, width = y.shape
    small = Image.fromarray(y.astype(np.float32)).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float64)
