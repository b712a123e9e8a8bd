"""A 2-D any-step task for the real `Objective`: the photograph is one of two points on the ray of its LQ point.

LQ: a point on a circle, latents (B, 2, 1, 1). Posterior: a mixture of two narrow Gaussians, near and far along the
ray. The best answer in squared error lies between them, on neither: what a blurry picture is to a photograph.

One `ToyVelocity` holds several small networks that know nothing of one another, one for each seed: rows of a batch
are (seed, sample). So several seeds cost little more than one.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from teasr_core.codec.protocol import Codec
from teasr_core.model.flow import velocity_from_output
from teasr_core.sampling.sampler import sample
from teasr_core.sampling.schedule import linear_taus
from training.objective.draws import draw
from training.objective.objective import Batch, LossWeights, Objective
from training.run.ema import Ema

RADIUS, SPREAD, NARROW = 0.7, 0.6, 0.1  # modes at (1 +- SPREAD) RADIUS with this standard deviation
WIDTH, DEPTH = 48, 3
TIME_FEATURES = 8


class PointCodec(Codec):
    """A latent is its own picture, of two channels and one pixel."""

    channels, downscale = 2, 1

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return 2 * image - 1

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent + 1) / 2


class ToyVelocity(nn.Module):
    """`seeds` perceptrons of (z_t, z_lq, t_cur, t_tar), as one velocity: a batch is of seeds x samples rows.

    A call may have several of them one after the other, as the objective joins them.
    """

    def __init__(
        self, seeds: int, samples: int, prediction: str = "velocity", use_dtc: bool = True, first_seed: int = 0
    ) -> None:
        super().__init__()
        self.seeds, self.samples, self.prediction, self.use_dtc = seeds, samples, prediction, use_dtc
        sizes = [4 + 2 * TIME_FEATURES, *[WIDTH] * DEPTH, 2]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        sources = [torch.Generator().manual_seed(seed) for seed in range(first_seed, first_seed + seeds)]
        for n_in, n_out in pairwise(sizes):
            drawn = [torch.rand(n_in + 1, n_out, generator=g) * 2 - 1 for g in sources]
            layer = torch.stack(drawn) * n_in**-0.5  # (seeds, in + 1, out)
            self.weights.append(nn.Parameter(layer[:, :-1].clone()))
            self.biases.append(nn.Parameter(layer[:, -1:].clone()))

    def lora_attached(self, height: int, width: int) -> nullcontext[None]:
        return nullcontext()

    def network_output(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor
    ) -> torch.Tensor:
        if not self.use_dtc:
            t_cur = t_tar = t_cur - t_tar / 2  # as dtc.dual_times
        times = time_features(torch.stack([t_cur, t_tar], dim=1)).flatten(1)  # (B, 2 x 8)
        rows = torch.cat([z_t.flatten(1), z_lq.flatten(1), times], dim=1)
        x = rows.reshape(-1, self.seeds, self.samples, rows.shape[1]).transpose(0, 1).flatten(1, 2)  # (seeds, n, in)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if k == 0 else nn.functional.silu(x), weight)  # (seeds, n, out)
        x = x.reshape(self.seeds, -1, self.samples, 2).transpose(0, 1)  # (k, seeds, samples, 2)
        return x.reshape(z_t.shape)

    def forward(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        output = self.network_output(z_t, t_cur, z_lq, t_tar)
        return velocity_from_output(self.prediction, output, z_t, z_lq, t_cur)


def time_features(t: torch.Tensor) -> torch.Tensor:
    """(B, 2) -> (B, 2, 8): the time, its sign, three sines and three cosines."""
    angle = t[..., None] * (torch.tensor([1.0, 2.0, 4.0]) * math.pi / 2)  # (B, 2, 3)
    return torch.cat([t[..., None], t.sign()[..., None], angle.sin(), angle.cos()], dim=-1)


def points(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(z_0, z_lq), each (count, 2, 1, 1)."""
    angle = 2 * math.pi * torch.rand(count, 1, generator=generator)
    ray = torch.cat([angle.cos(), angle.sin()], dim=1)  # (count, 2)
    side = torch.randint(0, 2, (count, 1), generator=generator) * 2 - 1
    z_0 = RADIUS * ray * (1 + SPREAD * side) + NARROW * torch.randn(count, 2, generator=generator)
    return z_0[:, :, None, None], RADIUS * ray[:, :, None, None]


def along_the_ray(z: torch.Tensor, z_lq: torch.Tensor) -> torch.Tensor:
    """(B, 2): coordinates along and across the LQ point's ray; there every posterior is the same."""
    (x, y), ray = z.flatten(1).unbind(1), z_lq.flatten(1) / RADIUS
    return torch.stack([x * ray[:, 0] + y * ray[:, 1], y * ray[:, 0] - x * ray[:, 1]], dim=1)


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two samples (n, 2); 0 in the mean for samples of one distribution (unbiased, so it may be below 0)."""
    n = len(a)
    within = sum(torch.cdist(x, x).sum() / (n * (n - 1)) for x in (a, b))
    return float(2 * torch.cdist(a, b).mean() - within)


@torch.no_grad()
def results(velocity: ToyVelocity, steps: int, count: int = 1000) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For every seed, (results with so many steps, samples of the posterior), (count, 2) each, along the ray.

    The same noises and LQ points for every velocity and number of steps.
    """
    trained_on, velocity.samples = velocity.samples, count
    g = torch.Generator().manual_seed(1000)
    z_0, z_lq = points(count * velocity.seeds, g)
    found = along_the_ray(sample(velocity, torch.randn(z_0.shape, generator=g), z_lq, linear_taus(steps)), z_lq)
    velocity.samples = trained_on
    return list(zip(found.split(count), along_the_ray(z_0, z_lq).split(count), strict=True))


def errors(velocity: ToyVelocity, steps: int) -> torch.Tensor:
    """Energy distance of results with so many steps to the posterior, (seeds,)."""
    return torch.tensor([energy_distance(*pair) for pair in results(velocity, steps)])


def step_gap(velocity: ToyVelocity, few: int = 1, many: int = 4) -> torch.Tensor:
    """Mean distance between the results of few and of many steps from the same noise, (seeds,)."""
    pairs = zip(results(velocity, few), results(velocity, many), strict=True)
    return torch.stack([(a[0] - b[0]).norm(dim=1).mean() for a, b in pairs])


def train(
    weights: LossWeights, seeds: int, steps: int = 1000, samples: int = 128, lr: float = 3e-3, use_tar: bool = True,
    first_seed: int = 0, **options: object,
) -> ToyVelocity:  # fmt: skip
    """Train by the real objective; the rate falls linearly, rectify is ramped as in `distill`."""
    velocity = ToyVelocity(seeds, samples, first_seed=first_seed, **options)  # type: ignore[arg-type]
    objective = Objective(velocity, PointCodec(), use_tar=use_tar)
    optimizer = torch.optim.Adam(velocity.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    ema, generator, ramp = Ema(velocity.named_parameters(), 0.98), torch.Generator().manual_seed(first_seed), steps / 10
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        now = replace(weights, rectify=weights.rectify * min(1.0, max(0.0, (step - ramp) / ramp)))
        z_0, z_lq = points(seeds * samples, generator)
        drawn = draw((seeds * samples, 2, 1, 1), generator)
        objective.backward(Batch(z_0, z_0, z_lq), drawn, now, scale=seeds, layout="batched")  # means over a seed
        optimizer.step()
        optimizer.zero_grad()
        ema.update(velocity.named_parameters(), step + 1)
    velocity.load_state_dict(ema.shadow)
    return velocity
