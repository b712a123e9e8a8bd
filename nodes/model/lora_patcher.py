"""A branch LoRA as a model of its own, so that ComfyUI loads it, offloads it and counts its memory (R10)."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.ops
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from ...teasr_core.model.branch_lora import BranchLora, lora_shapes
from ...teasr_core.weight_files.lora_file import LoraFile, read_lora


def adapter_patcher(lora: LoraFile, path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The adapter's weights in a patcher. ComfyUI reads them again from `path` for another device."""
    offload = comfy.model_management.unet_offload_device()
    module = BranchLora(
        lora_shapes(lora.tensors),
        linear=comfy.ops.manual_cast.Linear,
        device=offload,
        dtype=next(iter(lora.tensors.values())).dtype,
    )
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = patcher_class(module, load_device=comfy.model_management.get_torch_device(), offload_device=offload)
    module.load_state_dict(dict(lora.tensors), strict=True, assign=patcher.is_dynamic())
    module.requires_grad_(False)
    patcher.cached_patcher_init = (load_adapter, (path,))
    return patcher


def load_adapter(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The factory that ComfyUI calls for a copy without dynamic VRAM or on a second device.

    The file was checked when the LoRA was applied.
    """
    return adapter_patcher(read_lora(path), path, disable_dynamic)
