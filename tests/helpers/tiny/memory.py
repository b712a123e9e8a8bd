"""A tiny transformer with its branch LoRA, and one step of the distillation's order of forwards and backwards on it.

For the tests of `training/memory`: what they compare is the LoRA's gradients of that step, in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn

from helpers.tiny import model as tiny
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BranchLora, branch_overrides, forward_overrides
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from teasr_core.model.timesteps import dual_times

NUM_LAYERS = 5
ARCHITECTURE = dataclasses.replace(tiny.ARCHITECTURE, num_layers=NUM_LAYERS)
HEIGHT, WIDTH = 4, 8
NUM_NOISE = (HEIGHT // 2) * (WIDTH // 2)
BATCH = 2


def velocity(
    architecture: QwenArchitecture = ARCHITECTURE, dtype: torch.dtype = torch.float64, gain: float = 1.0
) -> QwenVelocity:
    """Random and frozen, with a trainable LoRA; `gain` scales the transformer's matrices."""
    transformer = build_transformer(architecture)
    weights = {
        key: gain * value if value.ndim == 2 else value for key, value in tiny.base_weights(architecture).items()
    }
    transformer.load_state_dict(weights)
    nn.Module.to(transformer, dtype).eval().requires_grad_(False)
    lora = BranchLora.from_tensors(tiny.lora_weights(architecture)).to(dtype)
    return QwenVelocity(transformer, tiny.prompt_embeds(architecture), "velocity", lora)


def pairs(batch: int = BATCH) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(t_cur, t_tar) of each forward of a step, in order; every sample has its own times."""
    t, s, m, t_fake = (torch.tensor(row[:batch]) for row in ((0.9, 0.7), (0.4, 0.0), (0.65, 0.35), (0.5, 0.3)))
    one, zero = torch.ones(batch), torch.zeros(batch)
    twice = (torch.cat([t_fake, t_fake]), torch.cat([t_fake, -t_fake]))
    return [(t, t), (t, m), (m, s), (t, s), (one, zero), twice, (t_fake, -t_fake)]


def times(batch: int = BATCH) -> list[torch.Tensor]:
    """The doubled time vectors of a step."""
    return [dual_times(t_cur, t_tar) for t_cur, t_tar in pairs(batch)]


def latents(architecture: QwenArchitecture = ARCHITECTURE, batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (2, batch, architecture.latent_channels, HEIGHT, WIDTH)
    both = torch.randn(shape, generator=tiny.generator(3), dtype=torch.float64)
    return both[0], both[1]


def lora_attached(v: QwenVelocity) -> AbstractContextManager[None]:
    """The LoRA's overrides, open across backwards as the trainer holds them."""
    return forward_overrides(branch_overrides(v.transformer, v.lora, 1.0, NUM_NOISE))


def step_gradients(
    v: QwenVelocity,
    contexts: Sequence[Callable[[], AbstractContextManager[Any]]] = (),
    lora_outside: bool = False,
    architecture: QwenArchitecture = ARCHITECTURE,
) -> dict[str, torch.Tensor]:
    """LoRA gradients of one step with `contexts` entered, in order: around the LoRA's overrides, or within them."""
    z, z_lq = latents(architecture)
    plain = QwenVelocity(v.transformer, v.prompt_embeds, v.prediction)  # the overrides carry the LoRA
    calls = iter(pairs())

    def output(no_grad: bool = False, twice: bool = False) -> torch.Tensor:
        t_cur, t_tar = next(calls)
        latent, condition = (torch.cat([x, x]) if twice else x for x in (z, z_lq))
        with torch.no_grad() if no_grad else nullcontext():
            return plain.network_output(latent, t_cur, condition, t_tar)

    v.lora.zero_grad()
    with ExitStack() as stack:
        if lora_outside:
            stack.enter_context(lora_attached(v))
        for context in contexts:
            stack.enter_context(context())
        if not lora_outside:
            stack.enter_context(lora_attached(v))
        output().square().mean().backward()  # flow
        target = output(no_grad=True) + output(no_grad=True)  # cons
        (output() - target).square().mean().backward()
        one_step = output()
        real, fake = output(no_grad=True, twice=True).chunk(2)  # between a forward and its backward
        (one_step * (real - fake)).mean().backward()
        output().square().mean().backward()  # adv
    assert next(calls, None) is None
    return {name: parameter.grad.clone() for name, parameter in v.lora.named_parameters()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of gradients that are not equal bit for bit."""
    assert set(a) == set(b) and all(float(value.abs().max()) > 0 for value in a.values())
    return [name for name in a if not torch.equal(a[name], b[name])]
