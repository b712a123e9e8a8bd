"""What is this file or folder? Told from headers and config files alone, no tensor is read (R27).

A table of signatures, most particular first; one entry is the keys that only this model has. The prefixes are those
under which ComfyUI and diffusers save a diffusion model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from .diffusers_folder import PART_NAMES, component_folder, read_json, shard_files
from .gguf_file import GgufReader, architecture, is_gguf
from .safetensors_reader import TensorInfo, read_header


class Kind(Enum):
    """What TEASR can do with a file; the value is how it is called in a sentence."""

    QWEN_TRANSFORMER = "transformer"
    QWEN_VAE = "VAE"
    TEASR_BASE = "TEASR base model"
    TEASR_LORA = "TEASR LoRA"
    START_ENCODER = "second VAE encoder of a TEASR LoRA"
    CHECKPOINT = "training checkpoint of TEASR"
    LORA = "ordinary LoRA"
    OTHER = "model of another architecture"
    UNKNOWN = "unknown kind of weights"


@dataclass(frozen=True)
class KindOfFile:
    """What `detect` found.

    Attributes:
        path: as given. files: the weight files of the part asked for, in order.
        kind, model: e.g. QWEN_TRANSFORMER, "Qwen-Image-Edit-2511".
        layout: "diffusers folder", "single file" or "GGUF".
        storage: how most weights are kept: bf16, fp16, fp32, fp8_e4m3fn, "fp8_e4m3fn scaled", nvfp4, Q4_K and so on.
        prefix: what stands before every key of the model.
        config: the folder's config.json, else empty.
        problem: why a GGUF file could not be looked into, with what to do; else empty.
    """

    path: Path
    kind: Kind
    model: str = ""
    layout: str = "single file"
    storage: str = ""
    prefix: str = ""
    files: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_qwen(self) -> bool:
        """Whether it is to be read as a Qwen-Image transformer. What a GGUF file holds may be unknown until then."""
        return self.kind is Kind.QWEN_TRANSFORMER or self.layout == "GGUF"

    def describe(self) -> str:
        """One clause, e.g. `x.safetensors: Qwen-Image transformer (single file, bf16)`."""
        what = f"{self.model} {self.kind.value}" if self.kind in (Kind.QWEN_TRANSFORMER, Kind.QWEN_VAE) else self.model
        details = ", ".join(part for part in (self.layout, self.storage) if part)
        return f"{self.path.name or self.path}: {what or self.kind.value} ({details})"


@dataclass(frozen=True)
class Signature:
    """A model that has all of `keys` (after the prefix) and, where given, `shape` of the first one's dimensions."""

    kind: Kind
    model: str
    keys: tuple[str, ...]
    dimension: tuple[int, int] | None = None  # (axis, size) of keys[0]


CHECKPOINT_KEY = "teasr.checkpoint"  # the state of a training run, as JSON, in the metadata of its checkpoints
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
QWEN_KEYS = ("txt_norm.weight", "img_in.weight", "transformer_blocks.0.img_mod.1.weight")
QWEN_IMAGE, QWEN_2511 = "Qwen-Image", "Qwen-Image-Edit-2511"
MARK_2511 = "__index_timestep_zero__"  # an empty tensor by which ComfyUI's file tells the 2511 from the others
COMFY_VAE_KEY, DIFFUSERS_VAE_KEY = "decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma"

SIGNATURES = (
    Signature(Kind.OTHER, "Mage-Flow model", QWEN_KEYS, (0, 2560)),
    Signature(Kind.OTHER, "Qwen-Image ControlNet", ("controlnet_blocks.0.weight", *QWEN_KEYS)),
    Signature(
        Kind.OTHER, "Qwen-Image-Layered transformer", ("time_text_embed.addition_t_embedding.weight", *QWEN_KEYS)
    ),
    Signature(Kind.QWEN_TRANSFORMER, QWEN_2511, (MARK_2511, *QWEN_KEYS)),
    Signature(Kind.QWEN_TRANSFORMER, QWEN_IMAGE, QWEN_KEYS),
    Signature(Kind.OTHER, "Qwen-Image-2.1 transformer", ("txt_in.text_norm.weight",)),
    Signature(Kind.OTHER, "Nunchaku (SVDQuant) model", ("transformer_blocks.0.attn.to_qkv.qweight",)),
    Signature(Kind.OTHER, "Wan 2.2 VAE", ("decoder.upsamples.0.upsamples.0.residual.2.weight", COMFY_VAE_KEY)),
    Signature(Kind.OTHER, "Qwen-Image-Layered VAE (RGBA)", ("encoder.conv1.weight", COMFY_VAE_KEY), (1, 4)),
    Signature(Kind.OTHER, "Qwen-Image-Layered VAE (RGBA)", ("encoder.conv_in.weight", DIFFUSERS_VAE_KEY), (1, 4)),
    Signature(Kind.QWEN_VAE, QWEN_IMAGE, (COMFY_VAE_KEY, "conv2.weight")),
    Signature(Kind.QWEN_VAE, QWEN_IMAGE, (DIFFUSERS_VAE_KEY, "post_quant_conv.weight")),
    Signature(Kind.OTHER, "VAE of Stable Diffusion or Flux", ("decoder.mid.block_1.norm1.weight",)),
    Signature(Kind.OTHER, "VAE of Stable Diffusion or Flux", ("decoder.mid_block.resnets.0.norm1.weight",)),
    Signature(Kind.OTHER, "Z-Image model", ("cap_pad_token",)),
    Signature(Kind.OTHER, "Lumina 2 model", ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight")),
    Signature(Kind.OTHER, "Flux 2 model", ("double_stream_modulation_img.lin.weight",)),
    Signature(Kind.OTHER, "Flux model", ("double_blocks.0.img_attn.norm.key_norm.scale",)),
    Signature(Kind.OTHER, "Flux model", ("single_transformer_blocks.0.attn.norm_q.weight", "x_embedder.weight")),
    Signature(Kind.OTHER, "Stable Diffusion 3 model", ("joint_blocks.0.context_block.attn.qkv.weight",)),
    Signature(Kind.OTHER, "Wan video model", ("head.modulation",)),
    Signature(Kind.OTHER, "SDXL model", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    Signature(Kind.OTHER, "Stable Diffusion model", ("input_blocks.0.0.weight",)),
    Signature(Kind.OTHER, "SDXL model", ("add_embedding.linear_1.weight", "conv_in.weight")),
    Signature(Kind.OTHER, "text encoder", ("model.embed_tokens.weight",)),
)
LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.", ".lokr_w1", ".hada_w1_a", ".dora_scale")
# Classes a diffusers config.json may name; any other is told by its own name.
CLASSES = {
    "QwenImageTransformer2DModel": (Kind.QWEN_TRANSFORMER, QWEN_IMAGE),
    "AutoencoderKLQwenImage": (Kind.QWEN_VAE, QWEN_IMAGE),
    "AutoencoderKLWan": (Kind.OTHER, "Wan VAE"),
    "ZImageTransformer2DModel": (Kind.OTHER, "Z-Image model"),
    "FluxTransformer2DModel": (Kind.OTHER, "Flux model"),
    "Flux2Transformer2DModel": (Kind.OTHER, "Flux 2 model"),
    "SD3Transformer2DModel": (Kind.OTHER, "Stable Diffusion 3 model"),
    "UNet2DConditionModel": (Kind.OTHER, "Stable Diffusion model"),
}
STORAGE = {
    "F32": "fp32", "BF16": "bf16", "F16": "fp16", "F64": "fp64", "F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2",
    "I8": "int8", "U8": "packed",
}  # fmt: skip


def detect(path: Path, part: str = "transformer") -> KindOfFile:
    """What lies at `path`: a file, a diffusers model folder (`part` of it) or that part's own folder.

    part: "transformer" or "vae". ModelFileError for a path that does not exist or a file that cannot be read.
    """
    assert part in PART_NAMES, part
    if path.is_dir():
        return _folder_kind(path, part)
    if not path.exists():
        raise ModelFileError(f"no file or folder at {path}: check the path")
    if is_gguf(path):
        return _gguf_kind(path)
    infos, metadata = read_header(path)
    kind, model, prefix = _signature_kind(infos, metadata)
    return KindOfFile(path, kind, model, storage=_storage(infos, prefix), prefix=prefix, files=(path,))


def expect(found: KindOfFile, kind: Kind, advice: str) -> KindOfFile:
    """`found` itself when it is of `kind`; else ModelFileError `<what it is>; <advice>`."""
    if found.kind is kind:
        return found
    raise ModelFileError(f"{found.describe()}; {found.problem or advice}")


def _signature_kind(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[Kind, str, str]:
    if metadata.get("teasr.kind") == "base":
        return Kind.TEASR_BASE, "", ""
    if metadata.get("teasr.kind") == "start_encoder":
        return Kind.START_ENCODER, "", ""
    if CHECKPOINT_KEY in metadata:
        return Kind.CHECKPOINT, "", ""
    if "teasr.scope" in metadata:
        return Kind.TEASR_LORA, "", ""
    if any(mark in key for key in infos for mark in LORA_MARKS):
        return Kind.LORA, "", ""
    for prefix in PREFIXES:
        for signature in SIGNATURES:
            if all(prefix + key in infos for key in signature.keys):
                shape = infos[prefix + signature.keys[0]].shape
                if signature.dimension is None or _has_side(shape, *signature.dimension):
                    return signature.kind, signature.model, prefix
    return Kind.UNKNOWN, "", ""


def _has_side(shape: tuple[int, ...], axis: int, size: int) -> bool:
    return shape[axis : axis + 1] == (size,)


def _storage(infos: Mapping[str, TensorInfo], prefix: str) -> str:
    """The format of most numbers of the model; block-scaled formats are told by the shape of their scales."""
    main = _main_dtype(infos, prefix)
    scales = [key for key in infos if key.endswith((".weight_scale", ".scale_weight"))]
    if any(key.endswith(".weight_scale_2") for key in infos):
        return "nvfp4"
    if any(".quant_state.bitsandbytes" in key for key in infos):
        return "bitsandbytes"
    if main.startswith("F8") and any(infos[key].dtype in ("U8", "F8_E8M0") for key in scales):
        return "mxfp8"
    return STORAGE.get(main, main.lower()) + (" scaled" if scales else "")


def _main_dtype(infos: Mapping[str, TensorInfo], prefix: str) -> str:
    """The dtype of most numbers, as the file calls it."""
    counts: dict[str, int] = {}
    for key, info in infos.items():
        if key.startswith(prefix):
            counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    return max(counts, key=lambda dtype: counts[dtype], default="")


def _folder_kind(path: Path, part: str) -> KindOfFile:
    folder = component_folder(path, part)
    if folder is None:
        return KindOfFile(path, Kind.UNKNOWN, f"folder without {part}/config.json", "folder")
    config = read_json(folder / "config.json")
    name = str(config.get("_class_name", ""))
    kind, model = CLASSES.get(name, (Kind.OTHER, f"diffusers {name or 'model without _class_name'}"))
    if kind is Kind.QWEN_TRANSFORMER and config.get("zero_cond_t"):
        model = QWEN_2511
    if kind is Kind.QWEN_TRANSFORMER and (config.get("use_additional_t_cond") or config.get("use_layer3d_rope")):
        kind, model = Kind.OTHER, "Qwen-Image-Layered transformer"
    if kind is Kind.QWEN_VAE and config.get("input_channels", 3) != 3:
        kind, model = Kind.OTHER, "Qwen-Image-Layered VAE (RGBA)"
    files, storage = (), ""
    if kind is not Kind.OTHER:
        files = shard_files(folder)
        storage = _storage(read_header(files[0])[0], "")
    return KindOfFile(path, kind, model, "diffusers folder", storage, "", files, config)


def _gguf_kind(path: Path) -> KindOfFile:
    """From the tensors' names; a file that cannot be looked into is still named by its architecture."""
    name = f"GGUF file of architecture '{architecture(path)}'"
    try:
        with GgufReader(path) as file:
            infos = file.infos
    except ModelFileError as error:
        return KindOfFile(path, Kind.OTHER, name, "GGUF", problem=str(error))
    kind, model, prefix = _signature_kind(infos, {})
    if kind is Kind.UNKNOWN:
        kind, model = Kind.OTHER, name
    main = _main_dtype(infos, prefix)
    return KindOfFile(path, kind, model, "GGUF", STORAGE.get(main, main), prefix, (path,))
