"""Counted bytes of a forward and backward of a small transformer with its branch LoRA, for tests of the planner.

Compute is bf16. Under autocast a CUDA device runs layer norm in float32, a CPU does not; `cuda_autocast` is the CPU's
with that one difference, so that what a GPU saves is counted here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.live_bytes import LiveBytes, saved_tensors
from helpers.tiny import model as tiny
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BranchLora, branch_overrides, forward_overrides, target_paths
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from training.memory.checkpointing import Checkpointing, apply_checkpointing
from training.memory.costs import Problem

# (architecture but for its layers, crop px, batch, rank): 16 px a token, as the 20B
Size = tuple[QwenArchitecture, int, int, int]
SIZES: list[Size] = [
    (QwenArchitecture(num_heads=2, head_dim=32, rope_axes=(8, 12, 12), text_width=16), 192, 1, 4),
    (QwenArchitecture(num_heads=4, head_dim=32, rope_axes=(8, 12, 12), text_width=24), 160, 2, 8),
    (QwenArchitecture(num_heads=2, head_dim=64, rope_axes=(16, 24, 24), text_width=32), 224, 1, 16),
]


def problem(size: Size, num_layers: int, use_autocast: bool = False) -> Problem:
    architecture, px, batch, rank = size
    architecture = dataclasses.replace(architecture, num_layers=num_layers)
    return Problem(architecture, px, rank, batch, "sequential", "none", tiny.PROMPT_TOKENS, use_autocast)


def velocity(p: Problem, lora_dtype: torch.dtype = torch.bfloat16) -> QwenVelocity:
    """In bf16, plain Linears, on the default device."""
    architecture = p.architecture
    transformer = build_transformer(architecture).requires_grad_(False)
    for module in transformer.modules():  # `to` cannot put fake tensors in the place of others
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.bfloat16(), requires_grad=False))
    linears: dict[str, Any] = dict(transformer.named_modules())
    paths = target_paths(architecture.num_layers)
    shapes = {path: (p.rank, linears[path].in_features, linears[path].out_features) for path in paths}
    prompt = torch.randn(p.prompt_tokens, architecture.text_width)
    return QwenVelocity(transformer, prompt, "velocity", BranchLora(shapes, dtype=lora_dtype))


class Counted:
    """One forward, and one backward when it has a gradient: bytes saved, alive between the two, alive at most.

    The LoRA is float32 or, as what a Problem without autocast needs, bf16.
    """

    def __init__(
        self, p: Problem, mode: str = "none", no_grad: bool = False, lora_dtype: torch.dtype = torch.bfloat16
    ) -> None:
        v = velocity(p, lora_dtype)
        apply_checkpointing(v.transformer, Checkpointing(mode))
        side = p.resolution_px // 8
        z = torch.randn(2, p.batch, 16, side, side)
        t = torch.full((p.batch,), 0.5)
        plain = QwenVelocity(v.transformer, v.prompt_embeds, v.prediction)
        for parameter in v.lora.parameters():
            parameter.grad = torch.zeros_like(parameter)  # gradients are the LoRA's line of the budget
        with torch.no_grad():
            plain(z[0], t, z[1], t)  # fills diffusers' tables of rotary frequencies
        weights = [*v.transformer.parameters(), *v.lora.parameters()]
        with contextlib.ExitStack() as stack:
            stack.enter_context(forward_overrides(branch_overrides(v.transformer, v.lora, 1.0, p.image_tokens // 2)))
            saved = stack.enter_context(saved_tensors(weights))
            live = stack.enter_context(LiveBytes())
            with torch.set_grad_enabled(not no_grad), cuda_autocast() if p.use_autocast else contextlib.nullcontext():
                out = plain(z[0], t, z[1], t)
            self.held, self.saved = live.now, saved.num_bytes
            if not no_grad:
                with layer_norm_in_float32() if p.use_autocast else contextlib.nullcontext():  # for the recompute
                    out.square().mean().backward()
            self.peak = live.peak


def saved_under_autocast_on_cuda(p: Problem, lora_dtype: torch.dtype) -> int:
    """Bytes that a forward saves by CUDA's own autocast rules: tensors without data, so that no GPU is needed."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_options: Any) -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    original = F.scaled_dot_product_attention
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        v = velocity(p, lora_dtype)
        side = p.resolution_px // 8
        z, t = torch.randn(2, p.batch, 16, side, side), torch.full((p.batch,), 0.5)
        F.scaled_dot_product_attention = attention
        torch.set_autocast_enabled("cuda", True)  # torch.autocast would ask for a GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with torch.no_grad():
                v(z[0], t, z[1], t)
            torch.clear_autocast_cache()
            with saved_tensors([*v.transformer.parameters(), *v.lora.parameters()]) as saved:
                v(z[0], t, z[1], t)
        finally:
            F.scaled_dot_product_attention = original
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
    return saved.num_bytes


@contextlib.contextmanager
def cuda_autocast() -> Iterator[None]:
    with layer_norm_in_float32(), torch.autocast("cpu", torch.bfloat16):
        yield


@contextlib.contextmanager
def layer_norm_in_float32() -> Iterator[None]:
    """CUDA's rule on the CPU, wherever autocast is on."""
    original = F.layer_norm

    def layer_norm(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return original(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    F.layer_norm = layer_norm
    try:
        yield
    finally:
        F.layer_norm = original
