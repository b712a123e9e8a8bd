"""A tiny ODTSR: a Qwen-Image, its VAE, and the checkpoint of an adapter, with weights that are the same everywhere.

The weights come from integer arithmetic on their names, so that what ODTSR's code makes of them can be recorded.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

from contract import qwen_on_disk
from helpers.tiny.qwen import comfy_vae_key
from teasr_core.weight_files.qwen_vae_file import encoder_shapes
from teasr_core.weight_files.safetensors_reader import read_header
from training.cli.commands import main
from training.frozen_base.prompt_file import write_prompt

LAYERS, HEADS, HEAD_DIM, TEXT_WIDTH = qwen_on_disk.LAYERS, qwen_on_disk.HEADS, qwen_on_disk.HEAD_DIM, 24
VAE_WIDTH, RANK, TOKENS = 8, 4, 5
TILE_PX, OVERLAP_PX = 64, 32
SEED = 42  # theirs is written into their code
FIDELITIES = (1.0, 0.5)
SIDES = {"one tile": 64, "four tiles": 96}
ADAPTED = (
    "img_mod.1", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2",
)  # fmt: skip
RECORDED = Path(__file__).parents[2] / "training" / "export" / "data" / "odtsr.safetensors"

Tensors = dict[str, torch.Tensor]


def fixed(name: str, *shape: int) -> torch.Tensor:
    """Numbers of mean 0 and deviation 1 that depend on the name alone, exact in bf16."""
    index = torch.arange(math.prod(shape), dtype=torch.int64) + zlib.crc32(name.encode())
    for factor in (0x45D9F3B, 0x119DE1F3):  # a mixing function of 32-bit integers
        index = ((index ^ (index >> 16)) * factor) & 0xFFFFFFFF
    uniform = (index ^ (index >> 16)).double() / 2**32 - 0.5
    return (uniform * 12**0.5).bfloat16().float().reshape(shape)


def base() -> Tensors:
    """The transformer's weights, those of Linears exact in fp8: ODTSR's own code rounds them to it."""
    tensors = {}
    for name, value in qwen_on_disk.weights().items():
        noise = fixed(name, *value.shape)
        if name.endswith("norm.weight") or ("norm_" in name and value.ndim == 1 and "linear" not in name):
            tensors[name] = (1 + 0.1 * noise).bfloat16().float()
        else:
            scaled = noise * value.shape[1] ** -0.5 if value.ndim == 2 else 0.1 * noise
            tensors[name] = scaled.to(torch.float8_e4m3fn).float()
    return tensors


def vae() -> Tensors:
    """The VAE's weights by diffusers' names: convolutions of about unit gain, norms around 1."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AutoencoderKLQwenImage(base_dim=VAE_WIDTH).state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        noise = fixed(name, *shape)
        if name.endswith("gamma"):
            tensors[name] = 1 + 0.1 * noise
        else:
            tensors[name] = noise * (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1)
    tensors["decoder.conv_out.weight"] *= 0.3  # most of the picture in [0, 1]
    return tensors


def checkpoint() -> Tensors:
    """What ODTSR's `save_ckpt` writes: the LoRA in bf16, whose noise half has B = 0, and the second encoder."""
    linears, tensors = qwen_on_disk.linears(), {}
    adapted = ["img_in"] + [f"transformer_blocks.{i}.{target}" for i in range(LAYERS) for target in ADAPTED]
    for path in adapted:
        out_features, in_features = linears[path]
        for branch, gain in ((1, 0.0), (2, 0.5)):
            names = {half: f"pipe.dit.{path}.lora_{half}{branch}.weight" for half in "AB"}
            tensors[names["A"]] = (fixed(names["A"], RANK, in_features) * in_features**-0.5).bfloat16()
            tensors[names["B"]] = (gain * fixed(names["B"], out_features, RANK)).bfloat16()
    shapes, convolutions = encoder_shapes(VAE_WIDTH)
    for name in convolutions:
        own = fixed(name, *shapes[name])
        changed = own + 0.1 * fixed(f"second {name}", *shapes[name])
        tensors[f"pipe.new_vae.{name}"] = changed * (own[0].numel() ** -0.5 if own.ndim > 1 else 0.1)
    return tensors


def prompt() -> torch.Tensor:
    return fixed("prompt", TOKENS, TEXT_WIDTH)


def picture(side: int) -> torch.Tensor:
    """(1, 3, side, side) of whole 8-bit levels in [0, 1]."""
    coarse = fixed(f"picture {side}", 1, 3, side // 8, side // 8) / 4 + 0.5
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1)
    return (smooth * 255).round() / 255


def image(tiles: str) -> torch.Tensor:
    """The picture of so many tiles (a key of SIDES) as ComfyUI has it, (1, H, W, 3)."""
    return picture(SIDES[tiles]).movedim(1, -1)


@dataclass(frozen=True)
class Files:
    """The files of a user: base and VAE as ComfyUI has them, ODTSR's checkpoint, and what `import-odtsr` made of it."""

    base: Path
    vae: Path
    checkpoint: Path
    lora: Path
    encoder: Path


def write_files(folder: Path, saved: Path | None = None, tile_px: int = TILE_PX, overlap_px: int = OVERLAP_PX) -> Files:
    """Write and import everything. `saved` is a checkpoint that was written by ODTSR's code, in place of `checkpoint`.

    The LoRA's automatic tiles are set to tile_px and overlap_px, so that a small picture has several.
    """
    names = ("base.safetensors", "vae.safetensors", "net_gen_iter_1.pth", "odtsr.safetensors", "odtsr_vae.safetensors")
    files = Files(*(folder / name for name in names))
    qwen_on_disk.write_single(files.base, base())
    save_file({comfy_vae_key(name): value.contiguous() for name, value in vae().items()}, files.vae)
    if saved is None:
        torch.save(checkpoint(), files.checkpoint)
    write_prompt(folder / "prompt.safetensors", prompt(), "a photograph", "hash")
    command = [saved or files.checkpoint, files.lora, files.encoder]
    options = ["--prompt", folder / "prompt.safetensors", "--base", files.base, "--overwrite"]
    assert main(["import-odtsr", *map(str, [*command, *options])]) == 0
    change_metadata(files.lora, **{"teasr.tile_px": str(tile_px), "teasr.overlap_px": str(overlap_px)})
    return files


def change_metadata(path: Path, **changes: str | None) -> Path:
    """Write a file again with some of its metadata replaced, or left out where it is None."""
    metadata = {**read_header(path)[1], **changes}
    save_file(load_file(path), path, metadata={key: value for key, value in metadata.items() if value is not None})
    return path


def recorded() -> Tensors:
    """What ODTSR's code made of it: `{tiles} {fidelity} latent` and, at every third pixel, `... picture`."""
    return load_file(RECORDED)


def difference(found: torch.Tensor, reference: torch.Tensor) -> float:
    """max |found - reference| / max |reference|"""
    return float((found - reference).abs().max() / reference.abs().max())
