"""The two-stage Real-ESRGAN degradation: a random plan, and carrying it out.

`sample_plan` draws every decision and `apply_plan` only follows the plan, so that the statistics of the decisions can
be tested without pixels. Source: Wang et al. 2021 (Real-ESRGAN, arXiv 2107.10833), figure 2.
"""

from dataclasses import dataclass

import numpy as np

from teasr_core.errors import InputError

from .kernels import KernelSpec, make_kernel, pick, sample_blur, sample_sinc
from .ops import INTERPOLATIONS, add_gaussian_noise, add_poisson_noise, filter_image, jpeg, resize_image, to_uint8
from .presets import HEAVY, LIGHT, PRESETS, Degradation, StageSettings

__all__ = ["HEAVY", "LIGHT", "PRESETS", "Degradation", "Plan", "StagePlan", "apply_plan", "degrade", "sample_plan"]

_MODES = tuple(INTERPOLATIONS)


@dataclass(frozen=True)
class StagePlan:
    """One stage's decisions. `noise_kind` is "gaussian" (strength in 8-bit levels) or "poisson" (a multiplier)."""

    blur: KernelSpec | None
    resize_factor: float
    resize_mode: str
    noise_kind: str
    noise_strength: float
    use_grey_noise: bool
    jpeg_quality: int


@dataclass(frozen=True)
class Plan:
    """Every decision for one picture. `final_sinc` None: no last filter. `use_jpeg_last`: resize, sinc, then JPEG."""

    first: StagePlan
    second: StagePlan
    final_mode: str
    final_sinc: KernelSpec | None
    use_jpeg_last: bool


def degrade(hq: np.ndarray, preset: Degradation, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Make a low-quality picture of `hq`, `scale` times smaller on each side.

    hq: (H, W, 3) float32 RGB in [0, 1]. Out: (round(H / scale), round(W / scale), 3) float32 on 8-bit levels in [0, 1].
    Raises InputError for another shape, dtype or range and for a scale that is not positive or leaves no pixel.
    """
    return apply_plan(hq, sample_plan(preset, rng), scale, rng)


def sample_plan(preset: Degradation, rng: np.random.Generator) -> Plan:
    """Draw all decisions for one picture. Source: Real-ESRGAN, figure 2 and its published training settings."""
    first = _sample_stage(preset, 1, True, rng)
    second = _sample_stage(preset, 2, rng.random() < preset.second_blur_prob, rng)
    has_sinc = rng.random() < preset.final_sinc_prob
    final_sinc = sample_sinc(preset.blur_kernel_sizes, rng, is_final=True) if has_sinc else None
    return Plan(first, second, _any_mode(rng), final_sinc, bool(rng.random() < 0.5))


def apply_plan(hq: np.ndarray, plan: Plan, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Carry out `plan` on `hq`; `rng` gives only the noise of the pixels. Shapes, ranges and errors as `degrade`."""
    lq_h, lq_w = _check_input(hq, scale)
    height, width = hq.shape[:2]

    image = filter_image(hq, make_kernel(plan.first.blur)) if plan.first.blur else hq  # (H, W, 3)
    image = _resize_and_noise(image, height, width, plan.first, rng)
    image = jpeg(image, plan.first.jpeg_quality)

    if plan.second.blur:
        image = filter_image(image, make_kernel(plan.second.blur))
    # The second factor counts from the final size: what the picture lost in stage one is not lost twice.
    image = _resize_and_noise(image, lq_h, lq_w, plan.second, rng)
    if not plan.use_jpeg_last:
        image = jpeg(image, plan.second.jpeg_quality)
    image = resize_image(image, lq_h, lq_w, plan.final_mode)  # (lq_h, lq_w, 3)
    if plan.final_sinc:
        image = filter_image(image, make_kernel(plan.final_sinc))
    if plan.use_jpeg_last:
        return jpeg(image, plan.second.jpeg_quality)
    return to_uint8(image).astype(np.float32) * np.float32(1.0 / 255.0)


def _resize_and_noise(
    image: np.ndarray, height: int, width: int, stage: StagePlan, rng: np.random.Generator
) -> np.ndarray:
    """Resize to the stage's factor of (height, width), then add the stage's noise."""
    factor = stage.resize_factor
    image = resize_image(image, max(1, round(height * factor)), max(1, round(width * factor)), stage.resize_mode)
    add_noise = add_gaussian_noise if stage.noise_kind == "gaussian" else add_poisson_noise
    return add_noise(image, stage.noise_strength, stage.use_grey_noise, rng)


def _sample_stage(preset: Degradation, number: int, has_blur: bool, rng: np.random.Generator) -> StagePlan:
    """Draw the decisions of stage 1 or 2."""
    stage = preset.stage(number)
    blur = _sample_blur(preset, stage, rng) if has_blur else None
    direction = pick(("up", "down", "keep"), stage.resize_prob, rng)
    smallest, largest = stage.resize_range
    factors = {"up": (1.0, largest), "down": (smallest, 1.0), "keep": (1.0, 1.0)}[direction]
    if rng.random() < stage.gaussian_noise_prob:
        kind, strengths = "gaussian", stage.noise_range
    else:
        kind, strengths = "poisson", stage.poisson_scale_range
    return StagePlan(
        blur=blur,
        resize_factor=float(rng.uniform(*factors)),
        resize_mode=_any_mode(rng),
        noise_kind=kind,
        noise_strength=float(rng.uniform(*strengths)),
        use_grey_noise=bool(rng.random() < stage.gray_noise_prob),
        jpeg_quality=round(rng.uniform(*stage.jpeg_range)),
    )


def _sample_blur(preset: Degradation, stage: StageSettings, rng: np.random.Generator) -> KernelSpec:
    if rng.random() < stage.sinc_prob:
        return sample_sinc(preset.blur_kernel_sizes, rng)
    return sample_blur(
        preset.kernel_list, stage.kernel_prob, preset.blur_kernel_sizes, stage.blur_sigma, stage.betag_range,
        stage.betap_range, rng,
    )  # fmt: skip


def _any_mode(rng: np.random.Generator) -> str:
    return _MODES[int(rng.integers(len(_MODES)))]


def _check_input(hq: np.ndarray, scale: float) -> tuple[int, int]:
    if hq.ndim != 3 or hq.shape[2] != 3 or 0 in hq.shape or hq.dtype != np.float32:
        raise InputError(f"degrade: found {hq.dtype} {hq.shape}, expected float32 (H, W, 3); convert the picture first")
    if not (hq.min() >= 0.0 and hq.max() <= 1.0):  # also false for NaN
        raise InputError("degrade: found pixels outside [0, 1], expected RGB in [0, 1]; divide 8-bit pixels by 255")
    if not 0.0 < scale < float("inf"):
        raise InputError(f"degrade: scale {scale}, expected a positive number; use 1, 2 or 4")
    lq_h, lq_w = round(hq.shape[0] / scale), round(hq.shape[1] / scale)
    if min(lq_h, lq_w) < 1:
        raise InputError(f"degrade: {hq.shape[1]}x{hq.shape[0]} at scale {scale} leaves no pixel; use a larger picture")
    return lq_h, lq_w
