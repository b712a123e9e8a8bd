"""Blur kernels of the Real-ESRGAN degradation: their kinds, how parameters are drawn, how a kernel is computed.

Drawing (`sample_blur`, `sample_sinc`) is separate from computing (`make_kernel`), so that the frequencies of the drawn
parameters can be tested against the definition without pixels.

Source: Wang et al. 2021, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data",
arXiv 2107.10833, sections 3.1 (Gaussian, generalised Gaussian, plateau) and 3.3 (sinc).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import j1

from teasr_core.errors import ConfigError

BLUR_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@dataclass(frozen=True)
class KernelSpec:
    """The parameters of one kernel. Lengths are in pixels of the image that is filtered.

    kind: one of `BLUR_KINDS`, or "sinc". sigma_y, theta (radians): of the anisotropic kinds. beta: the shape exponent
    of the generalised and plateau kinds. cutoff (radians per pixel, at most pi): of "sinc".
    """

    kind: str
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    theta: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi


def pick(items: Sequence, probabilities: Sequence[float], rng: np.random.Generator):
    """Draw one of `items` with the given probabilities, which sum to 1; faster than `Generator.choice`."""
    at = int(np.searchsorted(np.cumsum(probabilities), rng.random(), side="right"))
    return items[min(at, len(items) - 1)]


def sample_blur(
    kinds: Sequence[str],
    probabilities: Sequence[float],
    sizes: Sequence[int],
    sigma: tuple[float, float],
    beta_gaussian: tuple[float, float],
    beta_plateau: tuple[float, float],
    rng: np.random.Generator,
) -> KernelSpec:
    """Draw one Gaussian-like kernel: kind by `probabilities`, size uniform in `sizes`, both sigmas uniform in `sigma`.

    Source: Real-ESRGAN section 3.1.
    """
    kind = pick(kinds, probabilities, rng)
    size = int(sizes[int(rng.integers(len(sizes)))])
    sigma_x = sigma_y = float(rng.uniform(*sigma))
    theta = 0.0
    if not kind.endswith("_iso") and kind != "iso":
        sigma_y = float(rng.uniform(*sigma))
        theta = float(rng.uniform(-math.pi, math.pi))
    beta = 1.0
    if kind.startswith("generalized"):
        beta = _sample_beta(beta_gaussian, rng)
    elif kind.startswith("plateau"):
        beta = _sample_beta(beta_plateau, rng)
    return KernelSpec(kind, size, sigma_x, sigma_y, theta, beta)


def sample_sinc(sizes: Sequence[int], rng: np.random.Generator, is_final: bool = False) -> KernelSpec:
    """Draw one sinc filter. The cut-off is uniform in [pi/3, pi]; for wide ones that are not the last, in [pi/5, pi].

    A low cut-off needs a wide kernel: in a narrow one the truncation would decide the response, not the cut-off.
    Source: Real-ESRGAN section 3.3 and its published training settings.
    """
    size = int(sizes[int(rng.integers(len(sizes)))])
    lowest = math.pi / 3 if is_final or size < 13 else math.pi / 5
    return KernelSpec("sinc", size, cutoff=float(rng.uniform(lowest, math.pi)))


def make_kernel(spec: KernelSpec) -> np.ndarray:
    """Compute the kernel of `spec`: (size, size) float32, sums to 1, point-symmetric about its centre.

    With q = x^T S^-1 x and S the rotated covariance: Gaussian exp(-q/2), generalised exp(-q^beta / 2),
    plateau 1 / (1 + q^beta); sinc is the radial low-pass c J1(c r) / (2 pi r), c^2 / (4 pi) at r = 0.

    Raises ConfigError for a kind that is not known or an even size.
    """
    if spec.size % 2 == 0 or spec.size < 1:
        raise ConfigError(f"blur kernel size {spec.size}: expected an odd size; use sizes such as 7, 9, ..., 21")
    if spec.kind == "sinc":
        kernel = _sinc(spec)
    elif spec.kind in BLUR_KINDS:
        kernel = _bell(spec)
    else:
        known = ", ".join((*BLUR_KINDS, "sinc"))
        raise ConfigError(f"blur kernel kind '{spec.kind}': expected one of {known}; correct kernel_list")
    return (kernel / kernel.sum()).astype(np.float32)


def _sample_beta(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Half of the draws are below 1 and half above, so that peaked and flat shapes are equally frequent."""
    low, high = bounds
    if low < 1.0 < high:
        return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))
    return float(rng.uniform(low, high))


def _axis(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float64) - size // 2


def _bell(spec: KernelSpec) -> np.ndarray:
    axis = _axis(spec.size)
    x, y = axis[None, :], axis[:, None]
    cos, sin = math.cos(spec.theta), math.sin(spec.theta)
    along, across = cos * x + sin * y, cos * y - sin * x
    q = (along / spec.sigma_x) ** 2 + (across / spec.sigma_y) ** 2  # (size, size)
    if spec.kind.startswith("plateau"):
        return 1.0 / (1.0 + q**spec.beta)
    if spec.kind.startswith("generalized"):
        q = q**spec.beta
    return np.exp(-0.5 * q)


def _sinc(spec: KernelSpec) -> np.ndarray:
    axis = _axis(spec.size)
    r = np.hypot(axis[None, :], axis[:, None])  # (size, size)
    r[spec.size // 2, spec.size // 2] = 1.0  # any non-zero value: the centre is the limit below
    kernel = spec.cutoff * j1(spec.cutoff * r) / (2.0 * math.pi * r)
    kernel[spec.size // 2, spec.size // 2] = spec.cutoff**2 / (4.0 * math.pi)
    return kernel
