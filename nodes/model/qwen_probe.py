"""Tells what kind of MODEL there is by module paths and attributes: quantised and GGUF layers are no `nn.Linear`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...teasr_core.errors import ModelFileError
from ...teasr_core.model.architecture import QwenArchitecture
from ...teasr_core.model.branch_lora import BLOCK_TARGETS
from ...teasr_core.weight_files.lora_file import FINGERPRINT_KEYS


def probe_architecture(model: ModelPatcher) -> QwenArchitecture:
    """The architecture of a Qwen-Image MODEL. ModelFileError for any other model, or one that hooks cannot reach."""
    transformer = model.get_model_object("diffusion_model")
    kind = type(transformer).__name__
    blocks = getattr(transformer, "transformer_blocks", None)
    parts = ("time_text_embed", "img_in", "txt_in", "proj_out", "pe_embedder", "patch_size")
    if not blocks or not all(hasattr(transformer, part) for part in parts):
        raise ModelFileError(
            f"this MODEL is a {kind}: expected Qwen-Image (bf16, fp8 or GGUF) or TEASRLoadBuiltin's; load one of them"
        )
    if getattr(transformer.time_text_embed, "use_additional_t_cond", False):
        raise ModelFileError(
            "this MODEL is Qwen-Image-Layered, which takes a picture apart into layers: expected Qwen-Image (bf16, fp8 "
            "or GGUF) or TEASRLoadBuiltin's; load one of them"
        )
    fused = [path for path in BLOCK_TARGETS if not has_module(blocks[0], path)]
    if fused or "timestep_zero_index" not in inspect.signature(blocks[0].forward).parameters:
        found = f"no {fused[0]}" if fused else "no second timestep"
        raise ModelFileError(
            f"this MODEL's {kind} has blocks with {found} (fused layers, as in Nunchaku, or a host before 0.17): "
            "expected a Qwen-Image loaded by ComfyUI's own loader or as GGUF"
        )
    attention = blocks[0].attn
    patch_size = int(transformer.patch_size)
    return QwenArchitecture(
        latent_channels=transformer.img_in.in_features // patch_size**2,
        num_layers=len(blocks),
        num_heads=int(attention.heads),
        head_dim=transformer.img_in.out_features // int(attention.heads),
        rope_axes=tuple(transformer.pe_embedder.axes_dim),
        text_width=transformer.txt_in.in_features,
        patch_size=patch_size,
    )


def is_2511(model: ModelPatcher) -> bool:
    """Whether the MODEL is Qwen-Image-Edit-2511. It differs only in a mark in its file, which sets this default."""
    return getattr(model.get_model_object("diffusion_model"), "default_ref_method", "") == "index_timestep_zero"


def has_module(module: torch.nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def fingerprint_tensors(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """The tensors of FINGERPRINT_KEYS as in the base. If an ordinary LoRA is merged in, `backup` has the originals."""
    transformer = model.get_model_object("diffusion_model")
    tensors: dict[str, torch.Tensor] = {}
    for key in FINGERPRINT_KEYS:
        kept: Any = model.backup.get(f"diffusion_model.{key}")
        value = kept.weight if kept is not None else get_parameter(transformer, key)
        if value is not None:
            tensors[key] = value
    return tensors


def get_parameter(module: torch.nn.Module, path: str) -> torch.Tensor | None:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name, None) if has_module(module, parent) else None


def is_cast_to_fp8(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the loader's weight_dtype rounded the small tensors too, so that they no longer tell the base."""
    return any(value.dtype.is_floating_point and value.dtype.itemsize == 1 for value in tensors.values())
