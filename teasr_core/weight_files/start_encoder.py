"""The file of a second VAE encoder, of whose latent a LoRA starts (docs/training/lora_format.md#the-second-encoder).

It holds what training changed of the encoder, under the names of ComfyUI's VAE files. The rest of the VAE is that of
the Qwen-Image VAE which is in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ModelFileError
from ..model.recipe import Recipe
from .safetensors_reader import read_tensors

KIND = "start_encoder"
RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
OUTER = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}


@dataclass(frozen=True)
class StartEncoder:
    """The tensors of the file, by names such as `encoder.conv1.weight`, and their hash."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    sha256: str


def read_start_encoder(path: Path, recipe: Recipe | None = None) -> StartEncoder:
    """Read and check the file. ModelFileError for another kind of file, or one that is not `recipe`'s."""
    tensors, metadata = read_tensors(path)
    if metadata.get("teasr.kind") != KIND or metadata.get("teasr.format") != "1":
        raise ModelFileError(
            f"{path.name} is no second encoder (format 1): expected the file that `python -m training import-odtsr` "
            "wrote beside the LoRA"
        )
    found = hash_tensors(tensors)
    if recipe is not None and found != recipe.start_encoder_sha256:
        raise ModelFileError(
            f"{path.name} hashes to {found[:12]}, the LoRA was trained with {recipe.start_encoder_sha256[:12]}: "
            "expected the file that was written together with the LoRA; import both again"
        )
    return StartEncoder(path.name, tensors, found)


def start_encoder_metadata(source: str) -> dict[str, str]:
    """The metadata of the file; `source` is the name of the file that was imported."""
    return {"teasr.format": "1", "teasr.kind": KIND, "teasr.source": source}


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def merged(encoder: StartEncoder, state_dict: Mapping[str, torch.Tensor], vae_name: str) -> dict[str, torch.Tensor]:
    """`state_dict` of a VAE by ComfyUI's names, with the tensors of `encoder` in place of its own.

    ModelFileError where the VAE lacks one of them or has it in another shape.
    """
    wrong = [
        key for key, value in encoder.tensors.items() if key not in state_dict or state_dict[key].shape != value.shape
    ]
    if wrong:
        raise ModelFileError(
            f"{encoder.name} does not fit {vae_name}: {len(wrong)} tensors have no place in it, first {wrong[:2]}; "
            "expected the VAE of Qwen-Image, so give that one"
        )
    return {**state_dict, **encoder.tensors}


def comfy_encoder_key(key: str) -> str:
    """diffusers' name of a tensor of the encoder -> the name in ComfyUI's VAE files. Other names stay as they are."""
    side, block, *rest = key.split(".")
    if side != "encoder":
        return key
    if block in OUTER:
        return ".".join([side, OUTER[block], *rest])
    if block == "mid_block":
        kind, index, *rest = rest
        place = 1 if kind == "attentions" else 2 * int(index)
        return ".".join([side, "middle", str(place), *_inside(rest)])
    if block == "down_blocks":
        return ".".join([side, "downsamples", rest[0], *_inside(rest[1:])])
    return key


def _inside(rest: list[str]) -> list[str]:
    return [{**RESNET, "conv_shortcut": "shortcut"}.get(rest[0], rest[0]), *rest[1:]]
