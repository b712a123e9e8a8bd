"""Photographs and results that are Gaussian, with every velocity known in closed form: the sign of the rectification.

Photographs: N(z_lq + SHIFT, REAL_STD**2) for each of two channels. The generator turns noise into z_lq + shift + std
noise, and shift and std are all that is trained. The fake score is what a perfect adversary would know of it.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from teasr_core.model.flow import broadcast_time, velocity_from_output

SHIFT, REAL_STD = (0.4, -0.3), (0.5, 0.8)


class GaussianVelocity(nn.Module):
    """Generator at t_tar = 0, score of the photographs at t_tar > 0, of the generator's results at t_tar < 0."""

    def __init__(self, prediction: str, shift: tuple[float, float], std: tuple[float, float]) -> None:
        super().__init__()
        self.prediction = prediction
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))  # (C,)
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))  # (C,)

    def lora_attached(self, height: int, width: int) -> nullcontext[None]:
        return nullcontext()

    def network_output(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor
    ) -> torch.Tensor:
        time, tar = broadcast_time(t_cur.double(), z_t), broadcast_time(t_tar, z_t)
        one_step = z_lq + channels(self.shift) + channels(self.std) * z_t  # at t = 1 z_t is the noise
        real = posterior_mean(z_t, time, z_lq + channels(SHIFT), channels(REAL_STD))
        fake = posterior_mean(z_t, time, z_lq + channels(self.shift), channels(self.std))
        clean = torch.where(tar == 0, one_step, torch.where(tar > 0, real, fake))  # (B, C, 1, 1)
        return (z_t - clean) / time if self.prediction == "velocity" else clean - z_lq

    def forward(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        output = self.network_output(z_t, t_cur, z_lq, t_tar)
        return velocity_from_output(self.prediction, output, z_t, z_lq, t_cur)

    @torch.no_grad()
    def divergence(self) -> float:
        """KL divergence of the results from the photographs, the same for every z_lq."""
        ratio = self.std / torch.tensor(REAL_STD)  # (C,)
        off = (self.shift - torch.tensor(SHIFT)) / torch.tensor(REAL_STD)  # (C,)
        return float((ratio**2 + off**2 - 1).sum() / 2 - ratio.abs().log().sum())


def channels(values: torch.Tensor | tuple[float, ...]) -> torch.Tensor:
    """(C,) -> (1, C, 1, 1) float64."""
    return torch.as_tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def posterior_mean(z_t: torch.Tensor, t: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """E[z_0 | z_t] of z_0 ~ N(mean, std**2) on the straight path."""
    variance = ((1 - t) * std) ** 2 + t**2
    return mean + (1 - t) * std**2 / variance * (z_t - (1 - t) * mean)


def score(z_t: torch.Tensor, t: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Gradient of the log density of z_t, by autograd."""
    at = z_t.detach().requires_grad_()
    density = torch.distributions.Normal((1 - t) * mean, (((1 - t) * std) ** 2 + t**2).sqrt())
    (found,) = torch.autograd.grad(density.log_prob(at).sum(), at)
    return found
