"""Qwen-Image transformers from disk: diffusers folders and ComfyUI single files, one tensor in memory at a time (T7).

`read_qwen` reads headers alone; `load_qwen_transformer` then builds diffusers' class without memory for its weights
and fills it key by key, so that a trainer can quantise each tensor before the next one comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ModelFileError
from ..model.architecture import QwenArchitecture
from .comfy_quantised import SCALES, dequantise, is_side_key, layer_formats, logical_shape
from .file_kind import MARK_2511, Kind, KindOfFile, detect, expect
from .lora_file import FINGERPRINT_KEYS
from .safetensors_reader import TensorInfo, WeightReader

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

# What a full checkpoint of ComfyUI holds beside the diffusion model.
COMPANIONS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
PATCH_SIZE = 2  # of every Qwen-Image; shapes alone do not tell it
FP8 = ("F8_E4M3", "F8_E5M2")

# (parameter name, its tensor) -> what the model shall keep in its place, a parameter or not; None: it was taken.
Place = Callable[[str, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class QwenSource:
    """A transformer on disk. `shapes` are the parameters' by name, without the file's prefix."""

    kind: KindOfFile
    architecture: QwenArchitecture
    shapes: Mapping[str, tuple[int, ...]]
    is_fingerprint_fp8: bool  # the small tensors were rounded too, so the base can no longer be told by them
    prediction: str = "velocity"

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of every parameter, shard by shard; dequantised, in `dtype`, with memory of its own.

        Only the tensor handed out is kept: drop it before asking for the next one.
        """
        for path in self.kind.files:
            with WeightReader(path) as file:
                formats = layer_formats(file, self.kind.prefix)
                for name in _parameter_names(file.infos, self.kind.prefix):
                    yield name, self._read(file, name, formats, dtype, device)

    def fingerprint_tensors(self) -> dict[str, torch.Tensor]:
        """FINGERPRINT_KEYS as they are stored, for `lora_file.check_base`."""
        found: dict[str, torch.Tensor] = {}
        for path in self.kind.files:
            with WeightReader(path) as file:
                for name in FINGERPRINT_KEYS:
                    if self.kind.prefix + name in file.infos:
                        found[name] = file.read(self.kind.prefix + name)
        return found

    def _read(
        self, file: WeightReader, name: str, formats: Mapping[str, str], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        layer, _, leaf = name.rpartition(".")
        layer_format = formats.get(layer) if leaf == "weight" else None
        keys = {scale: f"{self.kind.prefix}{layer}.{scale}" for scale in SCALES if layer_format is not None}
        scales = {scale: file.read(key).to(device) for scale, key in keys.items() if key in file.infos}
        try:
            return dequantise(file.read(self.kind.prefix + name).to(device), scales, layer_format, dtype)
        except ModelFileError as error:
            raise ModelFileError(f"{self.kind.path.name}: {name}: {error}") from None


def read_qwen(path: Path) -> QwenSource:
    """Read the headers of a transformer. ModelFileError, one line, for anything else than a Qwen-Image transformer."""
    kind = expect(
        detect(path, "transformer"),
        Kind.QWEN_TRANSFORMER,
        "expected a Qwen-Image transformer (diffusers folder, or bf16, fp16, fp32 or fp8 safetensors), so give one",
    )
    label = path.name or str(path)
    if kind.storage == "bitsandbytes" or "quantization_config" in kind.config:
        raise ModelFileError(f"{label} was saved quantised by diffusers: give the original, TEASR quantises it itself")
    infos: dict[str, TensorInfo] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file_path in kind.files:
        with WeightReader(file_path) as file:
            header, formats = file.infos, layer_formats(file, kind.prefix)
        for name in _parameter_names(header, kind.prefix):
            if name in infos:
                raise ModelFileError(f"{label}: '{name}' stands in two shards: the folder mixes two downloads")
            infos[name] = info = header[kind.prefix + name]
            layer_format = formats.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            shapes[name] = logical_shape(info.shape, layer_format)
    is_fp8 = any(infos[name].dtype in FP8 for name in FINGERPRINT_KEYS if name in infos)
    return QwenSource(kind, _architecture(shapes, kind.config, label), shapes, is_fp8)


def load_qwen_transformer(
    source: QwenSource,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    place: Place | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
) -> QwenImageTransformer2DModel:
    """The transformer, in eval mode, without gradients, built with zero_cond_t=True.

    Args:
        dtype, device: what each tensor is dequantised to, and where.
        place: called as place(name, tensor) on arrival; what it returns becomes the parameter (fp8, a quantised
            tensor, a copy elsewhere), None nothing. The tensor is freed before the next one is read.
        prepare: called with the model while it is still without memory, to replace layers by others of the same name.
    Raises ModelFileError before a tensor is read when one is missing, unknown or of another shape.
    """
    model = empty_transformer(source.architecture)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_shapes(source, wanted)
    if prepare is not None:
        prepare(model)
    for name, tensor in source.tensors(dtype, device):
        layer, _, leaf = name.rpartition(".")
        kept = tensor if place is None else place(name, tensor)
        del tensor
        if kept is not None:
            parameter = kept if isinstance(kept, nn.Parameter) else nn.Parameter(kept, requires_grad=False)
            model.get_submodule(layer)._parameters[leaf] = parameter  # Module.__setattr__ would refuse quantised kinds
            del parameter
        del kept
    return model.eval().requires_grad_(False)


def empty_transformer(architecture: QwenArchitecture) -> QwenImageTransformer2DModel:
    """The class with every parameter on the meta device; its rotary tables, which no file holds, are real."""
    from accelerate import init_empty_weights

    from ..model.qwen_velocity import build_transformer

    with init_empty_weights(include_buffers=False):
        return build_transformer(architecture)


def _parameter_names(keys: Any, prefix: str) -> Iterator[str]:
    """Names of the model's own tensors: what is beside it, and what belongs to another weight, is left out."""
    for key in keys:
        if prefix and key.startswith(COMPANIONS):
            continue
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and (is_side_key(name) or name == MARK_2511):
            continue
        yield name


def _check_shapes(source: QwenSource, wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(wanted.keys() - source.shapes.keys())
    unknown = sorted(source.shapes.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & source.shapes.keys() if wanted[name] != source.shapes[name])
    if missing or unknown or wrong:
        raise ModelFileError(
            f"{source.kind.path.name}: {len(missing)} of {len(wanted)} tensors missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(wrong)} of another shape {wrong[:2]}: the file is incomplete "
            "or of another architecture, get it again"
        )


def _architecture(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], label: str) -> QwenArchitecture:
    """From shapes; a folder's config.json tells what shapes cannot."""
    try:
        width, head_dim = shapes["img_in.bias"][0], shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        out_channels, text_width = shapes["proj_out.bias"][0], shapes["txt_norm.weight"][0]
    except (KeyError, IndexError) as error:
        raise ModelFileError(f"{label} has no usable {error}: the file is incomplete, get it again") from None
    blocks = {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
    patch_size = config.get("patch_size", PATCH_SIZE)
    if not isinstance(patch_size, int) or patch_size < 1 or head_dim < 1:
        raise ModelFileError(
            f"{label} has patch_size {patch_size!r} and heads of {head_dim}: expected whole numbers above 0, "
            "get it again"
        )
    # The published models split a head's rotary dimensions 1 : 3.5 : 3.5; a single file does not say.
    axes = config.get("axes_dims_rope") or (head_dim // 8, 7 * head_dim // 16, 7 * head_dim // 16)
    return QwenArchitecture(
        latent_channels=out_channels // patch_size**2,
        num_layers=len(blocks),
        num_heads=width // head_dim,
        head_dim=head_dim,
        rope_axes=tuple(axes) if isinstance(axes, list) else axes,
        text_width=text_width,
        patch_size=patch_size,
    )
