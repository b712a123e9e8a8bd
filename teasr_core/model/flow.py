"""The linear flow between clean (t=0) and noise (t=1) and what the network's output means.

z_t = (1-t) z_0 + t eps, velocity eps - z_0. `prediction` names what the network returns:
    velocity     the average velocity from t_cur to t_tar itself (Qwen-Image),
    lq_residual  F with clean estimate x = F + z_lq; then v = (z_t - x) / t. A narrow network need not carry its own
                 noise through, and an untrained one returns the LQ image (docs/decisions.md#lq-residual).
"""

from __future__ import annotations

import torch

# Below this time the residual form divides by this time instead (docs/decisions.md#time-floor).
MIN_TIME = 1 / 64


def broadcast_time(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, 1, ...) with the rank of `like`."""
    return t.reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(z_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """z_t on the straight path; z_0 and noise (B, C, H, W), t (B,) in [0, 1]."""
    t = broadcast_time(t, z_0)
    return (1 - t) * z_0 + t * noise


def velocity_from_output(
    prediction: str, output: torch.Tensor, z_t: torch.Tensor, z_lq: torch.Tensor, t_cur: torch.Tensor
) -> torch.Tensor:
    """Average velocity (B, C, H, W) from the raw network output. t_cur (B,) is the noise branch's positive time."""
    if prediction == "velocity":
        return output
    return (z_t - (output + z_lq)) / broadcast_time(t_cur.clamp_min(MIN_TIME), z_t)


def clean_from_output(
    prediction: str, output: torch.Tensor, z_t: torch.Tensor, z_lq: torch.Tensor, t_cur: torch.Tensor
) -> torch.Tensor:
    """Clean estimate x (B, C, H, W) = z_t - t v, from the raw network output."""
    if prediction == "velocity":
        return z_t - broadcast_time(t_cur, z_t) * output
    return output + z_lq
