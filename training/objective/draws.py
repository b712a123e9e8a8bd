"""All random times and noises of one micro-step. They are drawn before it starts, so that the modulation can be
computed for all of them at once and a resumed run repeats them (docs/decisions.md#one-graph-at-a-time)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from . import losses, time_sampling


@dataclass(frozen=True)
class Draws:
    """Times (B,) float32 and standard normal noises (B, C, H, W)."""

    t_flow: torch.Tensor
    noise_flow: torch.Tensor
    t_cons: torch.Tensor
    s_cons: torch.Tensor
    noise_cons: torch.Tensor
    noise_one: torch.Tensor  # what the one-step result starts from
    t_fake: torch.Tensor
    noise_fake: torch.Tensor
    s: torch.Tensor  # where the two scores are compared
    noise_s: torch.Tensor
    perceptual_offset: torch.Tensor  # (2,) rows and columns of the picture that a windowed LPIPS leaves out

    def to(self, device: torch.device) -> Draws:
        return Draws(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def draw(shape: tuple[int, int, int, int], generator: torch.Generator, boundary_time: float = 0.0) -> Draws:
    """Draws for a batch of latents of `shape` (B, C, H, W), from a CPU generator: the same on every device."""
    batch = shape[0]
    t_cons, s_cons = time_sampling.consistency_times(batch, generator, boundary_time)
    return Draws(
        t_flow=time_sampling.flow_times(batch, generator),
        noise_flow=torch.randn(shape, generator=generator),
        t_cons=t_cons,
        s_cons=s_cons,
        noise_cons=torch.randn(shape, generator=generator),
        noise_one=torch.randn(shape, generator=generator),
        t_fake=time_sampling.fake_times(batch, generator),
        noise_fake=torch.randn(shape, generator=generator),
        s=time_sampling.fake_times(batch, generator),
        noise_s=torch.randn(shape, generator=generator),
        perceptual_offset=losses.perceptual_offset(generator),
    )
