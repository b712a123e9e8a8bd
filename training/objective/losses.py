"""One pure function per equation. All are mean squared errors in float32.

The paper prints norms that are not squared. With them the weight of Eq. 14 would cancel in the gradient of Eq. 11
(docs/decisions.md#squared-errors).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from teasr_core.model.flow import MIN_TIME, broadcast_time, interpolate, velocity_from_output
from teasr_core.model.velocity import Velocity

# Errors of the clean estimate count in full from this time up; below, the division by t
# would make them too large (docs/decisions.md#times-of-the-losses).
FULL_WEIGHT_TIME = 0.1
MAX_DIFFERENCE = 1.0  # of Delta, before its weight (docs/decisions.md#rectification)
MAX_RECTIFICATION = 10.0  # of w(s)
MAX_OFFSET = 7  # of a perceptual window, in pixels: every phase of the built-in model's tokens

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, 3, H, W) twice in [-1, 1] -> (B,)


def float32_or_wider(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean over all elements of weight * (prediction - target)**2, float32; weight broadcasts (1, C, 1, 1)."""
    return (weight * (float32_or_wider(prediction) - float32_or_wider(target)) ** 2).mean()


def residual_time_weight(t: torch.Tensor) -> torch.Tensor:
    """max(t, 0.1)**2 (B,): what the `lq_residual` prediction multiplies squared velocity errors by."""
    return t.clamp_min(FULL_WEIGHT_TIME) ** 2


def flow_target(z_0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Velocity of the straight path, noise - z_0. Eq. 5"""
    return noise - z_0


@torch.no_grad()
def consistency_target(
    velocity: Velocity, z_t: torch.Tensor, t: torch.Tensor, z_lq: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """Average velocity over two half steps t -> m -> s, live weights, no gradient. Eq. 1-3"""
    m = (t + s) / 2  # (B,)
    v_first = velocity(z_t, t, z_lq, m)  # (B, C, H, W)
    z_m = z_t - broadcast_time((t - s) / 2, z_t) * v_first  # (B, C, H, W)
    v_second = velocity(z_m, m, z_lq, s)  # (B, C, H, W)
    return (v_first + v_second) / 2


def with_boundary(
    target: torch.Tensor, flow: torch.Tensor, t: torch.Tensor, s: torch.Tensor, boundary_time: float
) -> torch.Tensor:
    """`target` (B, C, H, W) of L_cons, in rows with s = 0 and t <= boundary_time replaced by `flow`, that of L_flow.

    Without it nothing holds x(t, 0) of an `lq_residual` prediction: Eq. 1-4 teach it to equal x(t/2, 0), down to times
    that are never trained, so an error common to all of them is a fixed point and drifts
    (docs/log/any_step_training.md). Over so short a step the average velocity is the velocity; shortcut models
    (arXiv 2410.12557) ground their shortest step so.
    boundary_time 0 returns `target` itself.
    """
    if boundary_time == 0:
        return target
    at_boundary = (s == 0) & (t <= boundary_time)  # (B,)
    return torch.where(broadcast_time(at_boundary, target), float32_or_wider(flow), float32_or_wider(target))


def velocity_loss(
    prediction: str,
    output: torch.Tensor,
    target: torch.Tensor,
    z_t: torch.Tensor,
    z_lq: torch.Tensor,
    t: torch.Tensor,
    channel_weight: torch.Tensor,
) -> torch.Tensor:
    """Squared error of the velocity that `output` means against `target`, (B, C, H, W) -> scalar. Eq. 4, 5, 8

    For `lq_residual` it carries max(t, 0.1)**2; channel_weight (1, C, 1, 1) chooses latent or pixel space
    (docs/decisions.md#loss-space).
    """
    v = velocity_from_output(prediction, output, z_t, z_lq, t)  # (B, C, H, W)
    weight = channel_weight
    if prediction == "lq_residual":
        assert float(t.min()) >= MIN_TIME, f"times of a velocity loss start at {MIN_TIME}, got {float(t.min())}"
        weight = weight * broadcast_time(residual_time_weight(t), z_t)
    return weighted_mse(v, target, weight)


def data_loss(x_fake: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    """Pixel MSE of images in [-1, 1], (B, 3, H, W), unclamped; LPIPS is added by the caller. Eq. 12"""
    return ((float32_or_wider(x_fake) - float32_or_wider(x_0)) ** 2).mean()


def absolute_loss(x_fake: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of images in [-1, 1], (B, 3, H, W), unclamped."""
    return (float32_or_wider(x_fake) - float32_or_wider(x)).abs().mean()


def gradient_loss(x_fake: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the differences of neighbouring pixels, along rows plus along columns.

    x_fake, x: (B, 3, H, W) in [-1, 1]. The image gradient difference of Mathieu et al. (arXiv 1511.05440), signed.
    """
    error = float32_or_wider(x_fake) - float32_or_wider(x)
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def adversarial_point(z_fake: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """z_t on the fake trajectory (B, C, H, W), from the model's own result without its gradient; t (B,) > 0. Eq. 7"""
    return interpolate(z_fake.detach(), noise, t)


def adversarial_target(z_fake: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Velocity of the fake trajectory, noise - sg[z_fake]; learnt at target time -t. Eq. 8"""
    return flow_target(z_fake.detach(), noise)


def score_difference(real: torch.Tensor, fake: torch.Tensor, prediction: str) -> torch.Tensor:
    """How the fake trajectory differs from the real one at z_s, float32 (B, C, H, W). Eq. 9, 10

    Takes the raw network outputs at target times +s (real) and -s (fake) for the same z_s.
    velocity: Delta = v(-s) - v(+s).  lq_residual: Delta_x = x(+s) - x(-s) = s Delta (docs/decisions.md#rectification).
    """
    real, fake = float32_or_wider(real), float32_or_wider(fake)
    return fake - real if prediction == "velocity" else real - fake


def rectification_weight(s: torch.Tensor, w_max: float = MAX_RECTIFICATION) -> torch.Tensor:
    """w(s) = (1-s)**2 / s, at most w_max, (B,) in (0, 1) -> (B,). Eq. 14

    Uncapped, its mean over U(0, 1) diverges; `w_max = inf` is the paper's.
    """
    return ((1 - s) ** 2 / s).clamp_max(w_max)


def rectification_target(output: torch.Tensor, delta: torch.Tensor, w: torch.Tensor, prediction: str) -> torch.Tensor:
    """Where the raw one-step output is pulled, no gradient: v - w Delta, or F + w Delta_x for lq_residual. Eq. 11

    Delta is clamped to +-1 before the weight: early on it is mostly noise.
    """
    step = broadcast_time(w, output) * delta.clamp(-MAX_DIFFERENCE, MAX_DIFFERENCE)  # (B, C, H, W)
    output = float32_or_wider(output)
    return (output - step if prediction == "velocity" else output + step).detach()


def rectification_loss(
    output: torch.Tensor, delta: torch.Tensor, w: torch.Tensor, prediction: str, channel_weight: torch.Tensor
) -> torch.Tensor:
    """Squared distance of the raw one-step output (B, C, H, W) to `rectification_target`; w (B,). Eq. 11

    Its gradient is proportional to w Delta (docs/decisions.md#squared-errors). For `lq_residual`, the output and the
    clean estimate differ by z_lq, which cancels.
    """
    return weighted_mse(output, rectification_target(output, delta, w, prediction), channel_weight)


def perceptual_offset(generator: torch.Generator) -> torch.Tensor:
    """(2,) rows and columns, each 0 to 7, that `perceptual_window` leaves out."""
    return torch.randint(0, MAX_OFFSET + 1, (2,), generator=generator)


def perceptual_window(image: torch.Tensor, offset: torch.Tensor) -> tuple[slice, ...]:
    """The part of (B, C, H, W) that a perceptual network compares: all but the first `offset` rows and columns.

    Such networks look at every second, fourth and eighth pixel from the corner on. Crops begin where tokens begin, so
    without this the same pixels of every token are looked at each time, and the others may form a lattice.
    """
    top, left = (int(value) for value in offset)
    return (slice(None), slice(None), slice(top, image.shape[2]), slice(left, image.shape[3]))


def perceptual_loss(perceptual: Perceptual, x_fake: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    """Mean LPIPS of two (B, 3, H, W) batches in [-1, 1], unclamped. Eq. 13"""
    return perceptual(x_fake, x_0).mean()
