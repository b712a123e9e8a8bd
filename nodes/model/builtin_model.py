"""The built-in base as a ComfyUI MODEL: ComfyUI's own Qwen-Image class with a small config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_base import BaseModel
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from ...teasr_core.device import choose_dtype
from ...teasr_core.errors import ModelFileError
from ...teasr_core.model.architecture import QWEN_IMAGE, QwenArchitecture
from ...teasr_core.weight_files.base_file import BaseFile, shipped_base
from .dual_branch import ResidualSampling
from .latent_format import DctLatentFormat


@dataclass(frozen=True)
class BaseTraits:
    """What a MODEL predicts. The built-in base carries its own as `teasr_traits`; the defaults are Qwen-Image's."""

    prediction: str = "velocity"
    use_dtc: bool = True


def base_traits(model: ModelPatcher) -> BaseTraits:
    return getattr(model.model, "teasr_traits", BaseTraits())


def is_builtin(model: ModelPatcher) -> bool:
    return hasattr(model.model, "teasr_traits")


def builtin_patcher(base: BaseFile, dtype_name: str, disable_dynamic: bool = False) -> ModelPatcher:
    """The base in a patcher, without the dual-branch hooks. dtype_name is auto, fp32 or bf16."""
    load_device = comfy.model_management.get_torch_device()
    model = build_base(base, choose_dtype(dtype_name, load_device), load_device)
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=comfy.model_management.unet_offload_device())
    load_weights(model, base, use_assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (reload_builtin, (dtype_name,))
    if load_device.type == "cpu":
        patcher.model_options["transformer_options"]["optimized_attention_override"] = cpu_attention
    return patcher


def reload_builtin(dtype_name: str, disable_dynamic: bool = False) -> ModelPatcher:
    """The factory that ComfyUI calls for a copy without dynamic VRAM or on a second device."""
    return builtin_patcher(shipped_base(), dtype_name, disable_dynamic)


def cpu_attention(_default: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Torch's fused attention. With ComfyUI's default on a CPU (sub-quadratic) the whole model takes twice as long."""
    return attention_pytorch(*args, **kwargs)


def build_base(base: BaseFile, dtype: torch.dtype, load_device: torch.device) -> BaseModel:
    """ComfyUI's BaseModel for this architecture on the offload device, without the weights."""
    config = comfy.supported_models.QwenImage(unet_config(base.architecture))
    config.latent_format = DctLatentFormat(base.codec)
    config.memory_usage_factor *= base.architecture.width / QWEN_IMAGE.width  # activations are that much narrower
    # On a CPU ComfyUI would never compute in bf16, but choose_dtype has measured that it is faster here
    # (docs/decisions.md#dtype-on-a-cpu).
    cast = None
    if load_device.type != "cpu":
        cast = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast)
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model({}, device=offload_device)
    if base.prediction == "lq_residual":
        model.model_sampling = ResidualSampling(config)
    model.teasr_traits = BaseTraits(base.prediction, base.use_dtc)
    return model


def unet_config(architecture: QwenArchitecture) -> dict[str, object]:
    """The constructor arguments of ComfyUI's QwenImageTransformer2DModel."""
    return {
        "image_model": "qwen_image",
        "patch_size": architecture.patch_size,
        "in_channels": architecture.token_channels,
        "out_channels": architecture.latent_channels,
        "num_layers": architecture.num_layers,
        "attention_head_dim": architecture.head_dim,
        "num_attention_heads": architecture.num_heads,
        "joint_attention_dim": architecture.text_width,
        "axes_dims_rope": tuple(architecture.rope_axes),
    }


def load_weights(model: BaseModel, base: BaseFile, use_assign: bool) -> None:
    """Load every tensor of the file into the model. ModelFileError if one is left over or missing."""
    dtype = model.get_dtype()
    tensors = {key: value.to(dtype) for key, value in base.tensors.items()}
    try:
        model.diffusion_model.load_state_dict(tensors, strict=True, assign=use_assign)
    except RuntimeError as error:
        raise ModelFileError(
            f"{base.path.name} does not hold the model its config describes: {str(error).splitlines()[-1].strip()}; "
            "install the pack again"
        ) from None
    model.diffusion_model.requires_grad_(False)
