"""A small Qwen-Image with random weights on disk, as ComfyUI's and as diffusers' users have it, and LoRAs for it.

Names and shapes are written out here, so that both hosts' strict loading is a test of its own. Two heads of 32, three
blocks: the published model but for its size. ComfyUI's loader takes every Qwen-Image to be 24 heads of 128 wide;
`with_small_sizes` lets it read the sizes from the file instead (its classes stay as they are).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from helpers import rotation

LAYERS, HEADS, HEAD_DIM, TEXT_WIDTH, CHANNELS = 3, 2, 32, 24, 16
WIDTH, TOKEN = HEADS * HEAD_DIM, 4 * CHANNELS
RANK = 4
FP8 = torch.float8_e4m3fn

Tensors = dict[str, torch.Tensor]


def latents(batch: int = 1, lq_batch: int = 1, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, z_lq), each (B, C, H, W), normalised: not square, an even token grid."""
    source = generator(seed)
    shape = (CHANNELS, 8, 12)
    return torch.randn(batch, *shape, generator=source), torch.randn(lq_batch, *shape, generator=source)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linears(layers: int = LAYERS) -> dict[str, tuple[int, int]]:
    """Path -> (out, in) of every Linear."""
    shapes = {
        "img_in": (WIDTH, TOKEN),
        "txt_in": (WIDTH, TEXT_WIDTH),
        "time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
        "time_text_embed.timestep_embedder.linear_2": (WIDTH, WIDTH),
        "norm_out.linear": (2 * WIDTH, WIDTH),
        "proj_out": (TOKEN, WIDTH),
    }
    for index in range(layers):
        block = f"transformer_blocks.{index}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            shapes[f"{block}.attn.{name}"] = (WIDTH, WIDTH)
        for stream in ("img", "txt"):
            shapes[f"{block}.{stream}_mod.1"] = (6 * WIDTH, WIDTH)
            shapes[f"{block}.{stream}_mlp.net.0.proj"] = (4 * WIDTH, WIDTH)
            shapes[f"{block}.{stream}_mlp.net.2"] = (WIDTH, 4 * WIDTH)
    return shapes


def weights(seed: int = 0, layers: int = LAYERS) -> Tensors:
    """Matrices of about unit gain, norms around 1, biases around 0: every tensor matters."""
    source = generator(seed)
    tensors = {}
    for path, (out_features, in_features) in linears(layers).items():
        tensors[f"{path}.weight"] = torch.randn(out_features, in_features, generator=source) * in_features**-0.5
        tensors[f"{path}.bias"] = 0.1 * torch.randn(out_features, generator=source)
    norms = {"txt_norm.weight": TEXT_WIDTH}
    for index in range(layers):
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            norms[f"transformer_blocks.{index}.attn.{name}.weight"] = HEAD_DIM
    return tensors | {name: 1 + 0.1 * torch.randn(size, generator=source) for name, size in norms.items()}


def in_form(tensors: Tensors, form: str) -> tuple[Tensors, Tensors]:
    """(the file's tensors, what they mean) of a file of fewer bits.

    form: "bf16" and "fp8" round every tensor; "old" and "new" keep the blocks' Linears in fp8 with one scale each,
    named as in the first scaled files (`scaled_fp8`, `.scale_weight`) or today's (`.weight_scale`, `.comfy_quant`);
    "rotated" keeps them in int8 with rotation and a scale a row.
    """
    if form in ("bf16", "fp8"):
        dtype = torch.bfloat16 if form == "bf16" else FP8
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}, rounded(tensors, dtype)
    stored, meant = dict(tensors), dict(tensors)
    is_rotated = form == "rotated"
    turning = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": rotation.SIZE}
    config = turning if is_rotated else {"format": "float8_e4m3fn"}
    mark = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
    for path in linears():
        if path.startswith("transformer_blocks.") and is_rotated:
            turned = rotation.rotated(tensors[f"{path}.weight"])
            scale = turned.abs().amax(dim=1, keepdim=True) / 127
            codes = (turned / scale).round().to(torch.int8)
            stored |= {f"{path}.weight": codes, f"{path}.weight_scale": scale, f"{path}.comfy_quant": mark.clone()}
            meant[f"{path}.weight"] = rotation.rotated(codes * scale)
            continue
        if path.startswith("transformer_blocks."):
            weight = tensors[f"{path}.weight"]
            scale = weight.abs().max() / torch.finfo(FP8).max
            stored[f"{path}.weight"] = (weight / scale).to(FP8)
            meant[f"{path}.weight"] = stored[f"{path}.weight"].float() * scale
            if form == "old":
                stored[f"{path}.scale_weight"] = scale
            else:
                stored |= {f"{path}.weight_scale": scale, f"{path}.comfy_quant": mark.clone()}
    if form == "old":
        stored["scaled_fp8"] = torch.empty(0, dtype=FP8)
    return stored, meant


def rounded(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Every tensor as it is after a stay in `dtype`."""
    return {name: tensor.to(dtype).float() for name, tensor in tensors.items()}


def write_single(path: Path, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> Path:
    """ComfyUI's single file."""
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_folder(folder: Path, tensors: Tensors) -> Path:
    """A model folder, its transformer saved by diffusers itself."""
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=TOKEN, out_channels=CHANNELS, num_layers=LAYERS, attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    transformer.load_state_dict(tensors)
    transformer.save_pretrained(folder / "transformer")
    parts = {"_class_name": "QwenImagePipeline", "transformer": ["diffusers", "QwenImageTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(parts))
    return folder


def random_lora(paths: list[str], seed: int) -> Tensors:
    """`{path}.lora_A.weight` (r, in), `{path}.lora_B.weight` (out, r), exact in bf16, big enough to show."""
    source, shapes, tensors = generator(seed), linears(), {}
    for path in paths:
        out_features, in_features = shapes[path]
        tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, in_features, generator=source) * in_features**-0.5
        tensors[f"{path}.lora_B.weight"] = 0.25 * torch.randn(out_features, RANK, generator=source)
    return rounded(tensors, torch.bfloat16)


def prompt_embeds(seed: int, tokens: int = 3) -> torch.Tensor:
    """(T, text_width), exact in bf16."""
    return torch.randn(tokens, TEXT_WIDTH, generator=generator(seed)).bfloat16().float()


def write_lora(path: Path, formats: Any, targets: Any, base: Tensors, seed: int = 0, **changes: str) -> Path:
    """A TEASR LoRA file. formats, targets: the modules `lora_file` and `branch_lora`; `changes` replace metadata."""
    layers = len({name.split(".")[1] for name in base if name.startswith("transformer_blocks.")})
    metadata = formats.lora_metadata(
        prediction="velocity", rank=RANK, targets=targets.BLOCK_TARGETS, base="small Qwen",
        base_fingerprint=formats.fingerprint(base), step=1, config={},
    )  # fmt: skip
    tensors = random_lora(targets.target_paths(layers), seed)
    save_file(formats.lora_tensors(tensors, prompt_embeds(seed + 1)), path, metadata=metadata | changes)
    return path


def read_lora(path: Path) -> tuple[Tensors, torch.Tensor]:
    """(pairs by plain path, prompt embedding) of a TEASR LoRA file, by its keys alone."""
    from safetensors.torch import load_file

    tensors = {name.removeprefix("teasr."): tensor.float() for name, tensor in load_file(path).items()}
    return tensors, tensors.pop("prompt_embeds")


def with_small_sizes(detect: Callable[..., Any]) -> Callable[..., Any]:
    """ComfyUI's `detect_unet_config`, told the sizes it takes for granted."""

    def detect_small(state_dict: Mapping[str, Any], key_prefix: str, *args: Any, **kwargs: Any) -> Any:
        config = detect(state_dict, key_prefix, *args, **kwargs)
        if config and config.get("image_model") == "qwen_image":
            head_dim = state_dict[f"{key_prefix}transformer_blocks.0.attn.norm_q.weight"].shape[0]
            config |= {
                "attention_head_dim": head_dim,
                "num_attention_heads": state_dict[f"{key_prefix}img_in.bias"].shape[0] // head_dim,
                "joint_attention_dim": state_dict[f"{key_prefix}txt_norm.weight"].shape[0],
                "axes_dims_rope": (head_dim // 8, 7 * head_dim // 16, 7 * head_dim // 16),
            }
        return config

    return detect_small
