"""Dual-timestep conditioning: the noise branch carries t_cur, the condition branch t_tar
(docs/decisions.md#two-timesteps).

Both hosts already split the modulation by token group when the timestep vector is doubled ([t, 0] for
Qwen-Image-Edit-2511). DTC puts t_tar where they put 0. Times stay float32 up to the sinusoid: rounding t to bf16
before the embedding leaves a cosine of 0.91 in the worst case.
"""

from __future__ import annotations

import torch

# A negative target time marks the fake trajectory of Eq. 7. Near zero its embedding equals the positive one's
# (cosine 0.90 at 0.001, 0.53 at 0.02), so smaller magnitudes are a bug of the caller.
MIN_NEGATIVE_TIME = 0.02


def dual_times(
    t_cur: torch.Tensor, t_tar: torch.Tensor, use_dtc: bool = True, condition_time: str = "target"
) -> torch.Tensor:
    """The doubled timestep vector (2B,) float32: rows of the noise branch, then rows of the condition branch.

    Args:
        t_cur: (B,) current times in [0, 1], 1 = noise.
        t_tar: (B,) target times in [0, t_cur], or negative on the fake trajectory (Eq. 7).
        use_dtc: False gives both branches the one fused time t_cur - t_tar/2, the scheme the paper argues against
            in its section 3.3 (ablation "baseline").
        condition_time: "current" gives both branches t_cur, for an adapter that was trained so (`Recipe`).
    """
    cur, tar = t_cur.float(), t_tar.float()
    assert cur.shape == tar.shape and cur.ndim == 1, f"times must be two (B,) vectors, got {cur.shape} and {tar.shape}"
    if condition_time == "current":
        tar = cur
    elif not use_dtc:
        cur = tar = cur - tar / 2
    return torch.cat([cur, tar])


def check_target_times(t_tar: torch.Tensor) -> None:
    """Trainer's guard on Eq. 7: raises AssertionError on -0.0 or a negative time nearer to zero than 0.02."""
    negative = torch.signbit(t_tar)
    assert bool((t_tar[negative] <= -MIN_NEGATIVE_TIME).all()), (
        f"negative target times must be at most -{MIN_NEGATIVE_TIME}, got {t_tar[negative].tolist()}"
    )
