"""Activation checkpointing of the transformer: none, every k-th block, all, or all with their inputs on the host.

It uses diffusers' own hook, which calls the blocks through `torch.utils.checkpoint`. A checkpointed block runs again in
the backward, and whatever changes its forward must still be active then: the LoRA's overrides and the modulation sweep
stay open until the last backward of a step. Gradients are the same bit for bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from teasr_core.errors import ConfigError

MODES = ("none", "every", "all", "offload")


@dataclass(frozen=True)
class Checkpointing:
    """mode: "none", "every" (the blocks 0, k, 2k...), "all", "offload" (all, block inputs on the host); every: k."""

    mode: str = "all"
    every: int = 1

    def __post_init__(self) -> None:
        assert self.mode in MODES and self.every >= 1, self

    def __str__(self) -> str:
        return f"every {self.every}" if self.mode == "every" else self.mode

    @classmethod
    def parse(cls, text: str) -> Checkpointing:
        """Read "none", "every K", "all" or "offload". Raises ConfigError, with the key's name, for anything else."""
        words = text.split()
        if len(words) == 2 and words[0] == "every" and words[1].isdigit() and int(words[1]) >= 1:
            return cls("every", int(words[1]))
        if len(words) != 1 or words[0] not in ("none", "all", "offload"):
            raise ConfigError(
                f"memory.checkpointing is '{text}': expected auto, none, 'every K' (K from 1), all or offload"
            )
        return cls(words[0])

    def covers(self, block: int) -> bool:
        """Whether this block is recomputed in the backward."""
        return self.mode in ("all", "offload") or (self.mode == "every" and block % self.every == 0)


def apply_checkpointing(transformer: Any, checkpointing: Checkpointing) -> None:
    """Set how the transformer's blocks keep their activations, until the next call."""
    if checkpointing.mode == "none":
        transformer.disable_gradient_checkpointing()
        return
    index_of = {id(block): index for index, block in enumerate(transformer.transformer_blocks)}

    def call_block(block: Any, *args: Any) -> Any:
        if not checkpointing.covers(index_of[id(block)]):
            return block(*args)
        with _block_inputs_on_host() if checkpointing.mode == "offload" else nullcontext():
            # there is no dropout, and so no random state to keep
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)

    transformer.enable_gradient_checkpointing(call_block)


def _block_inputs_on_host() -> saved_tensors_hooks:
    """Move the token tensors (B, N, D) that a checkpoint saves to the host; the other, small ones stay.

    Around `checkpoint` these hooks see only the inputs of the block. Copies run on the current stream, in order with
    the block before and the recomputation after, so that pinned memory needs no synchronisation.
    """

    def to_host(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor] | torch.Tensor:
        if tensor.ndim != 3:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor, non_blocking=tensor.is_cuda)

    def to_device(packed: tuple[torch.device, torch.Tensor] | torch.Tensor) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        return host.to(device, non_blocking=True)

    return saved_tensors_hooks(to_host, to_device)
