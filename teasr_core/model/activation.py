"""The activation of the MLPs, for adapters that were trained with another one than the base's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

STREAMS = ("img_mlp", "txt_mlp")


def sigmoid_gelu_overrides(transformer: Any) -> list[tuple[nn.Module, Callable[..., torch.Tensor]]]:
    """Overrides (`branch_lora.forward_overrides`) that give every MLP x * sigmoid(1.702 x) for its GELU.

    Both hosts approximate GELU by tanh. DiffSynth-Studio, and ODTSR that was trained with it, takes this form, which
    differs by up to 0.02. `net.0` is called as before, and so is the Linear `net.0.proj` in it.
    """
    blocks = transformer.transformer_blocks
    modules = [block.get_submodule(f"{stream}.net.0") for block in blocks for stream in STREAMS]
    return [(module, _sigmoid_gelu(module.proj)) for module in modules]


def _sigmoid_gelu(proj: nn.Module) -> Callable[..., torch.Tensor]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        x = proj(hidden_states)  # (B, N, 4 D)
        return x * torch.sigmoid(1.702 * x)

    return forward
