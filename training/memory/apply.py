"""Apply a memory plan to a transformer: quantise and place its weights, set checkpointing, provide the step context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .checkpointing import apply_checkpointing
from .groups import BLOCK_GROUPS, GroupPlan, linears_of
from .modulation_sweep import ModulationSweep
from .planner import MemoryPlan
from .quantised_linear import FrozenLinear, replace_linears
from .streaming import BlockStreamer


@dataclass(frozen=True)
class PreparedMemory:
    """A transformer to which a plan was applied. streamers: of the groups whose weights stay on the host."""

    transformer: Any
    groups: Mapping[str, GroupPlan]
    streamers: Mapping[str, BlockStreamer]

    def step(
        self,
        times: Iterable[torch.Tensor],
        dtype: torch.dtype | None = None,
        forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> AbstractContextManager[object]:
        """A context that must span one step, from before its first forward to after its last backward.

        times: the doubled time vectors (2B,) of every forward of the step (see `ModulationSweep`). Without swept
        modulation the context does nothing. Forwards outside of a step, such as previews, stream the modulation.
        """
        if self.groups["modulation"].placement != "swept":
            return nullcontext()
        return ModulationSweep(self.transformer, times, dtype, forward_context)


def prepare(transformer: Any, plan: MemoryPlan, device: torch.device) -> PreparedMemory:
    """Freeze the transformer and hold it on `device` as planned.

    The weights are on the CPU or on the device. A transformer that was built on the meta device must have had its
    Linears replaced by `replace_linears` and every weight stored. Call this once, before the LoRA is attached.
    """
    groups = {group: plan.groups.get(group, GroupPlan()) for group in BLOCK_GROUPS}
    transformer.requires_grad_(False)
    replace_linears(transformer, groups)
    streamers = {}
    for group, group_plan in groups.items():
        blocks = [_layers(found) for found in linears_of(transformer, group, FrozenLinear)]
        if group_plan.placement != "resident":
            streamers[group] = BlockStreamer(blocks, device)
            continue
        for layer in (layer for layers in blocks for layer in layers):
            layer.move(device)
    nn.Module.to(transformer, device)  # biases, norms, the rest; diffusers' own `to` warns of what it cannot see
    apply_checkpointing(transformer, plan.checkpointing)
    return PreparedMemory(transformer, groups, streamers)


def _layers(found: list[tuple[str, nn.Module]]) -> list[FrozenLinear]:
    return [module for _, module in found if isinstance(module, FrozenLinear)]
