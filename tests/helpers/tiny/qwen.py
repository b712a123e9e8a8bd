"""A tiny Qwen-Image with its VAE and LoRA on disk, in every layout the published files come in: real classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import save_file

from helpers import rotation
from helpers.tiny import model as tiny
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BLOCK_TARGETS
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from teasr_core.weight_files.lora_file import fingerprint, lora_metadata, lora_tensors

# Head dimension 64: its rotary axes are those a single file is taken to have, (8, 28, 28).
ARCHITECTURE = QwenArchitecture(
    latent_channels=16, num_layers=2, num_heads=1, head_dim=64, rope_axes=(8, 28, 28), text_width=32
)
VAE_WIDTH = 4
FP8 = torch.float8_e4m3fn
T_CUR, T_TAR = torch.tensor([1.0, 0.6]), torch.tensor([0.0, 0.45])


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    return tiny.base_weights(ARCHITECTURE, seed)


def velocity(tensors: Mapping[str, torch.Tensor]) -> QwenVelocity:
    """Built directly, without any file."""
    transformer = build_transformer(ARCHITECTURE)
    transformer.load_state_dict(dict(tensors))
    return wrap(transformer)


def wrap(transformer: Any) -> QwenVelocity:
    return QwenVelocity(transformer.eval().requires_grad_(False), tiny.prompt_embeds(ARCHITECTURE), "velocity")


def latents(height: int = 8, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """(z_t, z_lq), each (2, 16, H, W)."""
    both = torch.randn(2, 2, 16, height, width, generator=tiny.generator(3))
    return both[0], both[1]


def output(model: QwenVelocity) -> torch.Tensor:
    z_t, z_lq = latents()
    with torch.no_grad():
        return model(z_t, T_CUR, z_lq, T_TAR)


def difference(found: torch.Tensor, reference: torch.Tensor) -> float:
    """max |found - reference| / max |reference|"""
    return float((found - reference).abs().max() / reference.abs().max())


# Transformer files


def write_folder(root: Path, shard_bytes: int | None = None, seed: int = 0, zero_cond_t: bool = False) -> Path:
    """A whole model's folder as diffusers saves it; published configs have no zero_cond_t but the 2511's."""
    transformer = build_transformer(ARCHITECTURE)
    transformer.load_state_dict(weights(seed))
    transformer.register_to_config(zero_cond_t=zero_cond_t)
    transformer.save_pretrained(root / "transformer", max_shard_size=shard_bytes or "5GB")
    parts = {
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    (root / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline", **parts}))
    return root


def write_single(
    path: Path, prefix: str = "", dtype: torch.dtype = torch.float32, extra: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """ComfyUI's single file: the same keys, with or without a prefix."""
    tensors = {prefix + key: value.to(dtype) for key, value in weights().items()}
    save_file({**tensors, **(extra or {})}, path)
    return path


def scaled_layers(tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """The layers a scaled file quantises: the blocks' Linears."""
    for key, value in tensors.items():
        if key.startswith("transformer_blocks.") and value.ndim == 2:
            yield key.removesuffix(".weight")


def write_scaled(path: Path, form: str, prefix: str = "model.diffusion_model.") -> tuple[Path, dict[str, torch.Tensor]]:
    """(file, weights as the file means them) with one scale a layer, named in one of ComfyUI's forms.

    form: old (`scaled_fp8` and `.scale_weight`), bare (`.weight_scale` alone), layer (`.comfy_quant`), header
    (`_quantization_metadata`), rows (int8, one scale a row), rotated (the same, after a rotation of 64 columns).
    """
    stored, meant, metadata = dict(weights()), dict(weights()), {}
    layers = list(scaled_layers(stored))
    names: dict[str, Any] = {"format": "int8_tensorwise" if form in ("rows", "rotated") else "float8_e4m3fn"}
    names |= {"convrot": True, "convrot_groupsize": rotation.SIZE} if form == "rotated" else {}
    for layer in layers:
        weight = stored[f"{layer}.weight"]
        if form == "rotated":
            weight = rotation.rotated(weight)
        if form in ("rows", "rotated"):
            scale = weight.abs().amax(dim=1, keepdim=True) / 127  # (out, 1)
            packed = (weight / scale).round().to(torch.int8)
        else:
            scale = weight.abs().max() / 448
            packed = (weight / scale).to(FP8)
        stored[f"{layer}.weight"], meant[f"{layer}.weight"] = packed, packed.float() * scale
        if form == "rotated":
            meant[f"{layer}.weight"] = rotation.rotated(packed.float() * scale)
        stored[f"{layer}.scale_weight" if form == "old" else f"{layer}.weight_scale"] = scale
        if form == "old":
            stored[f"{layer}.scale_input"] = torch.tensor(1.0)
        if form in ("layer", "rows", "rotated"):
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)
    if form == "old":
        stored["scaled_fp8"] = torch.empty(0, dtype=FP8)
    if form == "header":
        metadata["_quantization_metadata"] = json.dumps({"layers": {prefix + layer: names for layer in layers}})
    save_file({prefix + key: value.contiguous() for key, value in stored.items()}, path, metadata=metadata or None)
    return path, meant


# The LoRA


def write_lora(path: Path, use_prompt: bool = True, **changes: str) -> Path:
    """A random LoRA for `weights()`; `changes` replace metadata."""
    prompt = tiny.prompt_embeds(ARCHITECTURE, seed=5) if use_prompt else None
    metadata = lora_metadata(
        prediction="velocity", rank=tiny.RANK, targets=BLOCK_TARGETS, base="tiny Qwen",
        base_fingerprint=fingerprint(weights()), step=7, config={},
    )  # fmt: skip
    save_file(lora_tensors(tiny.lora_weights(ARCHITECTURE), prompt), path, metadata=metadata | changes)
    return path


# The VAE


def vae(seed: int = 0) -> AutoencoderKLQwenImage:
    """A VAE of the published shape, 4 wide, with diffusers' own random initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKLQwenImage(base_dim=VAE_WIDTH).eval().requires_grad_(False)


def write_vae(root: Path) -> Path:
    """The part `vae` of a model folder."""
    vae().save_pretrained(root / "vae")
    return root


def write_comfy_vae(path: Path) -> Path:
    """The same weights under the names of qwen_image_vae.safetensors."""
    tensors = {comfy_vae_key(key): value for key, value in vae().state_dict().items()}
    save_file(tensors, path)
    return path


RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def comfy_vae_key(key: str) -> str:
    """diffusers' name of a VAE tensor -> Wan's, for 4 levels of 2 (encoder) and 3 (decoder) residual blocks."""
    parts = key.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return ".".join(["conv1" if parts[0] == "quant_conv" else "conv2", *parts[1:]])
    side, block, *rest = parts
    simple = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
    if block in simple:
        return ".".join([side, simple[block], *rest])
    if block == "mid_block":
        kind, index, *rest = rest
        place = {"resnets": 2 * int(index), "attentions": 1}[kind]
        return ".".join([side, "middle", str(place), *_inside(rest)])
    if block == "down_blocks":
        return ".".join([side, "downsamples", rest[0], *_inside(rest[1:])])
    level, kind, index, *rest = rest
    place = 4 * int(level) + (int(index) if kind == "resnets" else 3)
    return ".".join([side, "upsamples", str(place), *_inside(rest)])


def _inside(rest: list[str]) -> list[str]:
    head = {**RESNET, "conv_shortcut": "shortcut"}.get(rest[0], rest[0])
    return [head, *rest[1:]]
