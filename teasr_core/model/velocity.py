"""The one contract between samplers and networks (docs/decisions.md#one-velocity).

A sampler knows no network and a network knows no sampler; both know `Velocity`. The trainer, the command line and the
tests use `qwen_velocity.QwenVelocity`. Tiles are a `tiled_velocity.TiledVelocity` around any velocity.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Velocity(Protocol):
    def __call__(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor, /
    ) -> torch.Tensor:
        """Average velocity v(z_t, t_cur, z_lq, t_tar) from t_cur to t_tar.

        z_t, z_lq and the result are normalised latents (B, C, H, W); t_cur and t_tar are (B,) float32.
        """
        ...
