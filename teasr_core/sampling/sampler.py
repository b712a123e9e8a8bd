"""Algorithm 1: any-step sampling. It knows a velocity and a schedule, and nothing of networks, images or hosts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..errors import InputError
from ..model.velocity import Velocity

StepCallback = Callable[[int, torch.Tensor], None]


def initial_noise(seed: int, channels: int, height: int, width: int) -> torch.Tensor:
    """One noise field (1, C, H, W) float32 from a 64-bit seed, drawn on the CPU whatever the device
    (docs/decisions.md#one-noise-field, R23).

    It is torch's own stream, so that ComfyUI's RandomNoise gives the same. On a CPU torch takes the low 32 bits of a
    seed: two seeds that differ by a multiple of 2**32 have the same noise, here as in ComfyUI.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, channels, height, width, generator=generator, dtype=torch.float32)


def sample(
    velocity: Velocity,
    noise: torch.Tensor,
    z_lq: torch.Tensor,
    taus: torch.Tensor,
    on_step: StepCallback | None = None,
    fidelity: float = 0.0,
) -> torch.Tensor:
    """Integrate from noise to a clean latent: z <- z - (tau_i - tau_{i+1}) v(z, tau_i, z_lq, tau_{i+1}).

    Args:
        velocity: it must not keep its z_t (B, C, H, W), because z_t is updated in place after every step.
        noise, z_lq: (B, C, H, W) float32. taus: (N+1,) float32, falling from 1 to 0. Where they start below 1, `noise`
            is a latent that was mixed with noise for the time taus[0] (`noised`).
        fidelity: 0 to 1; above 0 the noise is scaled down (`scaled_noise`), which the published algorithm does not do.
        on_step: called after step i with (i, clean estimate (B, C, H, W)); an exception of it stops the sampling.
    Returns the clean latent (B, C, H, W). Algorithm 1.
    """
    # Copy: `z` is updated in place to keep only one latent in memory.
    z = scaled_noise(noise, fidelity).expand_as(z_lq).contiguous()
    del noise  # it is as large as the latent; a decorator would keep it alive through its arguments
    with torch.inference_mode():
        for i in range(len(taus) - 1):
            t_cur = taus[i].to(z.device).expand(len(z))  # (B,)
            t_tar = taus[i + 1].to(z.device).expand(len(z))  # (B,)
            v = velocity(z, t_cur, z_lq, t_tar)  # (B, C, H, W)
            if on_step is not None:
                on_step(i, torch.sub(z, v, alpha=float(taus[i])))
            z.sub_(v, alpha=float(taus[i] - taus[i + 1]))
            del v  # free it before the next velocity is computed
    return z


def check_fidelity(fidelity: float) -> float:
    """Return `fidelity`. Raises InputError unless it is a number from 0 to 1."""
    if not (math.isfinite(fidelity) and 0 <= fidelity <= 1):
        raise InputError(f"fidelity is {fidelity}: expected a number from 0 to 1")
    return fidelity


def noised(latent: torch.Tensor, noise: torch.Tensor, time: float) -> torch.Tensor:
    """Return (1 - time) latent + time noise, (B, C, H, W); at time 0 the latent itself."""
    return latent if time == 0 else (1 - time) * latent + time * noise


def scaled_noise(noise: torch.Tensor, fidelity: float) -> torch.Tensor:
    """Return (1 - fidelity) * noise as a new tensor of the same shape; at fidelity 0 the values are equal."""
    return noise * (1 - check_fidelity(fidelity))
