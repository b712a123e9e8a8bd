"""Qwen-Image's VAE from disk."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..codec.qwen_vae import LATENT_MEAN, LATENT_STD, QwenVaeCodec
from ..codec.single_frame import keep_first_frame
from ..errors import ModelFileError
from ..tiling import QWEN_OVERLAP_PX, QWEN_TILE_PX
from .file_kind import COMFY_VAE_KEY, Kind, detect, expect
from .safetensors_reader import read_tensors
from .start_encoder import StartEncoder, comfy_encoder_key, merged

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

# What every published Qwen-Image VAE has; width and channels are read from a single file's shapes.
DEFAULT_CONFIG: Mapping[str, Any] = {
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "input_channels": 3,
    "latents_mean": list(LATENT_MEAN),
    "latents_std": list(LATENT_STD),
}


def load_qwen_vae(
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tile_px: int = QWEN_TILE_PX,
    overlap_px: int = QWEN_OVERLAP_PX,
    border_px: int = 0,
    start_encoder: StartEncoder | None = None,
) -> QwenVaeCodec:
    """From a diffusers folder (the whole model's or the VAE's), or a single file with ComfyUI's or diffusers' keys.

    start_encoder: what a second encoder has of its own; the rest of it is the VAE's.
    ModelFileError for another kind of file, or one that does not hold the VAE whole.
    """
    kind = expect(detect(path, "vae"), Kind.QWEN_VAE, "expected a Qwen-Image VAE (folder or safetensors), so give one")
    if kind.layout == "GGUF":
        raise ModelFileError(f"{kind.describe()}: a VAE is read from safetensors, give qwen_image_vae.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for file in kind.files:
        tensors |= read_tensors(file)[0]
    tensors = {key.removeprefix(kind.prefix): value for key, value in tensors.items()}
    if COMFY_VAE_KEY in tensors:
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        tensors = convert_wan_vae_to_diffusers(tensors)
    vae = _empty_vae({**DEFAULT_CONFIG, **_sizes(tensors, path.name), **kind.config})
    wanted = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise ModelFileError(
            f"{path.name}: {len(wrong)} VAE tensors are missing, unknown or of another shape, first {wrong[:3]}: "
            "the file is incomplete or of another VAE, get it again"
        )
    vae.load_state_dict(tensors, assign=True)
    second = None if start_encoder is None else _second_encoder(vae, start_encoder, path.name)
    for module in (vae, second):
        if module is not None:
            keep_first_frame(module)
            nn.Module.to(module, device, dtype).eval().requires_grad_(False)
    return QwenVaeCodec(vae, tile_px, overlap_px, border_px, second)


def _second_encoder(vae: AutoencoderKLQwenImage, start_encoder: StartEncoder, label: str) -> nn.Module:
    encoder = copy.deepcopy(vae.encoder)
    own = {comfy_encoder_key(f"encoder.{key}"): key for key in encoder.state_dict()}
    state = {name: encoder.state_dict()[key] for name, key in own.items()}
    encoder.load_state_dict(
        {own[name]: value for name, value in merged(start_encoder, state, label).items()}, assign=True
    )
    return encoder


def _sizes(tensors: Mapping[str, torch.Tensor], label: str) -> dict[str, int]:
    try:
        return {
            "base_dim": tensors["decoder.norm_out.gamma"].shape[0],
            "z_dim": tensors["post_quant_conv.weight"].shape[0],
        }
    except KeyError as error:
        raise ModelFileError(f"{label} has no {error}: the file is incomplete, get it again") from None


def _empty_vae(config: Mapping[str, Any]) -> AutoencoderKLQwenImage:
    from diffusers import AutoencoderKLQwenImage

    with torch.device("meta"):
        return AutoencoderKLQwenImage(**{key: value for key, value in config.items() if not key.startswith("_")})


def encoder_shapes(base_dim: int) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(shapes of the encoder's tensors by diffusers' names, the names of its causal convolutions) of a VAE this wide.

    The convolutions over time, which no single picture passes through, are not among the causal ones.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    vae = _empty_vae({**DEFAULT_CONFIG, "base_dim": base_dim, "z_dim": len(LATENT_MEAN)})
    shapes = {f"encoder.{name}": tuple(value.shape) for name, value in vae.encoder.state_dict().items()}
    convolutions = [
        f"encoder.{path}.{name}"
        for path, module in vae.encoder.named_modules()
        if isinstance(module, QwenImageCausalConv3d) and "time_conv" not in path
        for name, _ in module.named_parameters()
    ]
    return shapes, convolutions
