"""One pure function per equation. All are mean squared errors in float32 (METHOD 1).

The paper prints un-squared norms; their gradient of Eq. 11 is Delta/|Delta|, in which the weight of Eq. 14 cancels.
"""

from __future__ import annotations

import torch

from teasr_core.flow import MIN_TIME, broadcast_time, velocity_from_output
from teasr_core.velocity import Velocity

# Errors of the clean estimate count in full from this time up; below, a velocity would blow them up (SPEC 8).
FULL_WEIGHT_TIME = 0.1


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean over all elements of weight * (prediction - target)**2, float32; weight broadcasts (1, C, 1, 1)."""
    return (weight * (prediction.float() - target.float()) ** 2).mean()


def residual_time_weight(t: torch.Tensor) -> torch.Tensor:
    """max(t, 0.1)**2 (B,): what the `lq_residual` prediction multiplies squared velocity errors by (SPEC 8)."""
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


def velocity_loss(
    prediction: str,
    output: torch.Tensor,
    target: torch.Tensor,
    z_t: torch.Tensor,
    z_lq: torch.Tensor,
    t: torch.Tensor,
    channel_weight: torch.Tensor,
) -> torch.Tensor:
    """Squared error of the velocity that `output` means against `target`, (B, C, H, W) -> scalar. Eq. 4, 5

    For `lq_residual` it carries max(t, 0.1)**2; channel_weight (1, C, 1, 1) chooses latent or pixel space (SPEC 9).
    """
    v = velocity_from_output(prediction, output, z_t, z_lq, t)  # (B, C, H, W)
    weight = channel_weight
    if prediction == "lq_residual":
        assert float(t.min()) >= MIN_TIME, f"times of a velocity loss start at {MIN_TIME}, got {float(t.min())}"
        weight = weight * broadcast_time(residual_time_weight(t), z_t)
    return weighted_mse(v, target, weight)


def data_loss(x_fake: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    """Pixel MSE of images in [-1, 1], (B, 3, H, W), unclamped; LPIPS is added by the caller. Eq. 12"""
    return ((x_fake.float() - x_0.float()) ** 2).mean()
