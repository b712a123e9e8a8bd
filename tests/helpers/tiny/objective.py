"""What an `Objective` needs at tiny size: velocity with a trainable adapter, batch, draws, a perceptual network.

And `joint_losses`, every loss of one micro-step written down again from the equations, as one graph.
"""

from __future__ import annotations

import torch
from torch import nn

from helpers.tiny import model as tiny
from teasr_core.model.qwen_velocity import QwenVelocity
from training.objective.draws import Draws, draw
from training.objective.losses import Perceptual
from training.objective.objective import Batch, LossWeights, Objective

WEIGHTS = LossWeights(data=1.3, lpips=0.7, flow=0.9, cons=1.1, adv=0.6, rectify=0.4)  # no two alike
GAIN = 10


class Edges(nn.Module):
    """A perceptual distance with two random layers: (B, 3, H, W) twice -> (B,), differentiable."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(6, 3, 3, 3, generator=tiny.generator(30), dtype=torch.float64)
        self.register_buffer("weight", weight / 5)
        self.to(torch.float64)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(nn.functional.conv2d(x, self.weight.to(x)))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (self.features(a) - self.features(b)).square().mean(dim=(1, 2, 3))


def velocity(
    prediction: str = "lq_residual", dtype: torch.dtype = torch.float64, use_dtc: bool = True,
    checkpointing: bool = False,
) -> QwenVelocity:  # fmt: skip
    """Tiny velocity whose random adapter can be trained; `checkpointing` as `DistillModel` switches it on.

    Its output is enlarged until the score difference reaches the clamp.
    """
    found = tiny.velocity(prediction, use_lora=True, use_dtc=use_dtc, dtype=dtype)
    found.transformer.proj_out.weight.mul_(GAIN)
    assert found.lora is not None
    found.lora.requires_grad_(True)
    if checkpointing:
        found.transformer.train()
        found.transformer.enable_gradient_checkpointing()
    return found


def batch(size: int = 2, dtype: torch.dtype = torch.float64) -> Batch:
    """Images of 16 x 32 px, latents of 4 x 8."""
    images = torch.rand(2, size, 3, 16, 32, generator=tiny.generator(31), dtype=torch.float64).to(dtype)
    return Batch.encode(tiny.codec(), images[0], images[1])


def draws(size: int = 2, dtype: torch.dtype = torch.float64, seed: int = 32) -> Draws:
    """All in `dtype`: in float64, because 1 - t in float32 would differ between two ways to write one formula."""
    drawn = draw((size, tiny.DCT_CHANNELS, 4, 8), tiny.generator(seed))
    return Draws(**{name: value.to(dtype) for name, value in vars(drawn).items()})


def objective(of: QwenVelocity, **options: object) -> Objective:
    return Objective(of, tiny.codec(), **{"perceptual": Edges(), "loss_space": "pixel", **options})  # type: ignore[arg-type]


def gradients(of: QwenVelocity) -> dict[str, torch.Tensor]:
    """The adapter's gradients, which are then cleared; a parameter without one counts as zero."""
    assert of.lora is not None
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in of.lora.named_parameters()}
    of.lora.zero_grad(set_to_none=True)
    return found


def joint_losses(
    of: QwenVelocity, batch: Batch, draws: Draws, loss_space: str, perceptual: Perceptual, w_max: float
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The raw losses, written from the equations without the trainer's functions."""
    codec, z_0, z_lq = tiny.codec(), batch.z_0, batch.z_lq
    residual = of.prediction == "lq_residual"
    channel = (codec.std**2 / (codec.std**2).mean()).double() if loss_space == "pixel" else torch.tensor(1.0)

    def wide(t: torch.Tensor) -> torch.Tensor:
        return t.double().reshape(-1, 1, 1, 1)

    def raw(z: torch.Tensor, t: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        return of.network_output(z, t, z_lq, t_tar)

    def v(z: torch.Tensor, t: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        return (z - raw(z, t, t_tar) - z_lq) / wide(t) if residual else raw(z, t, t_tar)

    def error(difference: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = wide(t).clamp(min=0.1) ** 2 if residual else 1.0
        return (channel * time * difference**2).mean()

    def mixed(z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return z - wide(t) * (z - noise)

    t = draws.t_flow
    flow = error(v(mixed(z_0, draws.noise_flow, t), t, t) - draws.noise_flow + z_0, t)

    t, s = draws.t_cons, draws.s_cons
    middle, start = (t + s) / 2, mixed(z_0, draws.noise_cons, t)
    with torch.no_grad():
        first = v(start, t, middle)
        second = v(start - wide((t - s) / 2) * first, middle, s)
    cons = error(v(start, t, s) - 0.5 * first - 0.5 * second, t)

    one = torch.ones_like(t)
    output = raw(draws.noise_one, one, 0 * one)
    z_fake = output + z_lq if residual else draws.noise_one - output
    x_fake = 2 * codec.decode(z_fake) - 1
    data = (x_fake - batch.x_0).square().mean()
    lpips = perceptual(x_fake, batch.x_0).mean()

    fixed, s = z_fake.detach(), draws.s
    with torch.no_grad():
        z_s = mixed(fixed, draws.noise_s, s)
        real, fake = raw(z_s, s, s), raw(z_s, s, -s)
        step = wide(((1 - s) ** 2 / s).clamp(max=w_max)) * (fake - real).clamp(-1, 1)
        aim = output - step  # raw outputs: for the residual fake - real is -Delta_x, and the step is added
    rectify = (channel * (output - aim) ** 2).mean()

    t = draws.t_fake
    adv = error(v(mixed(fixed, draws.noise_fake, t), t, -t) - draws.noise_fake + fixed, t)
    return {"flow": flow, "cons": cons, "data": data, "lpips": lpips, "rectify": rectify, "adv": adv}


def joint_total(parts: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
    w = weights
    data = w.data * (parts["data"] + w.lpips * parts["lpips"])
    return data + w.flow * parts["flow"] + w.cons * parts["cons"] + w.adv * parts["adv"] + w.rectify * parts["rectify"]
