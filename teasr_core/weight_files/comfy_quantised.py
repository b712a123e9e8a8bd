"""Weights as ComfyUI's quantised files keep them, dequantised one layer at a time.

Three ways a file names its formats: `comfy_quant` (JSON as bytes, one tensor a layer), `_quantization_metadata` in the
header, and the older `scaled_fp8` mark with `.scale_weight`; a scale beside an fp8 weight without any of them is read
the same way. Formats and layouts: ComfyUI 0.33 (comfy/ops.py, comfy/utils.py) and comfy-kitchen 0.2.31; block scales
lie in the tiles cuBLAS wants (its documentation, "block scaling factors layout").
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..errors import ModelFileError
from .safetensors_reader import WeightReader

MARK = "scaled_fp8"
SCALES = ("weight_scale", "weight_scale_2", "scale_weight")
# Of the activations, or what names the format: they are no weights and take no part in dequantisation.
ASIDE = ("comfy_quant", "input_scale", "scale_input")
PLAIN_SCALED = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
BLOCKS = {"mxfp8": 32, "nvfp4": 16}
# The sixteen values of a 4-bit float (2 exponent bits, 1 mantissa bit), sign in the highest bit.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def is_side_key(name: str) -> bool:
    """True for a scale or a mark: part of another weight, no weight of the model."""
    return name == MARK or name.rsplit(".", 1)[-1] in (*SCALES, *ASIDE)


def layer_formats(file: WeightReader, prefix: str) -> dict[str, str]:
    """Layer -> format of every quantised layer an open file names, without the file's prefix.

    ModelFileError for a format that cannot be read here.
    """
    keys, label = list(file.infos), file.path.name
    configs: dict[str, Any] = {}
    for layer in _layers_with(keys, prefix, ("scale_weight", "weight_scale")):
        configs[layer] = {"format": "float8_e4m3fn"}  # fp8 of either kind: the weight's own dtype decides
    listed = file.metadata.get("_quantization_metadata")
    if listed is not None:
        configs |= {key.removeprefix(prefix): value for key, value in _layers_of(listed, label).items()}
    for layer in _layers_with(keys, prefix, ("comfy_quant",)):
        stored = file.read(f"{prefix}{layer}.comfy_quant")
        configs[layer] = _parse(bytes(stored.to(torch.uint8).flatten().tolist()), label)
    for layer in _layers_with(keys, prefix, ("pre_quant_scale", "weight_s_rel", "weight_s_channel")):
        configs[layer] = {"format": "with pre_quant_scale or weight_s_rel"}
    return {layer: _checked_format(config, layer, label) for layer, config in configs.items()}


def dequantise(
    stored: torch.Tensor, scales: Mapping[str, torch.Tensor], layer_format: str | None, dtype: torch.dtype
) -> torch.Tensor:
    """A weight as numbers: (out, in) of `dtype`, on stored's device; `stored` itself where nothing is to be done.

    stored: as in the file; nvfp4 holds two columns a byte. scales: of SCALES without the layer's name, same device.
    The product is taken in float32. ModelFileError when a scale is missing or of another size.
    """
    if layer_format is None:
        return stored.to(dtype)
    scale = scales.get("weight_scale", scales.get("scale_weight"))
    if scale is None:
        if layer_format.startswith("float8"):
            return stored.to(dtype)
        raise ModelFileError(f"a {layer_format} layer has no weight_scale: the file is incomplete, download it again")
    if layer_format in PLAIN_SCALED:
        # One scale, or one a row.
        if scale.numel() not in (1, stored.shape[0]):
            raise ModelFileError(f"a scale of {tuple(scale.shape)} for a weight of {tuple(stored.shape)}: damaged file")
        column = scale.float().reshape(-1, *([1] * (stored.ndim - 1)))  # (1 or out, 1)
        return stored.to(torch.float32, copy=True).mul_(column).to(dtype)
    values = _e2m1_values(stored) if layer_format == "nvfp4" else stored.to(torch.float32, copy=True)  # (out, in)
    rows, columns = values.shape
    if layer_format == "mxfp8":
        block_scale = _block_scales(scale.view(torch.uint8), rows, columns // BLOCKS["mxfp8"])
        block_scale = torch.exp2(block_scale.float() - 127) * (block_scale > 0)  # e8m0: the exponent alone
    else:
        if "weight_scale_2" not in scales:
            raise ModelFileError("an nvfp4 layer has no weight_scale_2: the file is incomplete, download it again")
        block_scale = _block_scales(scale.view(torch.uint8), rows, columns // BLOCKS["nvfp4"])
        block_scale = block_scale.view(torch.float8_e4m3fn).float() * scales["weight_scale_2"].float()
    values.view(rows, -1, BLOCKS[layer_format]).mul_(block_scale[..., None])  # (out, blocks, block)
    return values.to(dtype)


def logical_shape(shape: tuple[int, ...], layer_format: str | None) -> tuple[int, ...]:
    """The shape of the weight itself, from that of what is stored."""
    return (*shape[:-1], 2 * shape[-1]) if layer_format == "nvfp4" else shape


def _layers_with(keys: Collection[str], prefix: str, names: tuple[str, ...]) -> list[str]:
    ends = tuple(f".{name}" for name in names)
    return [key.removeprefix(prefix).rsplit(".", 1)[0] for key in keys if key.startswith(prefix) and key.endswith(ends)]


def _parse(text: str | bytes, label: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{label} names its formats in damaged JSON ({error}): download it again") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{label} names its formats in another way than ComfyUI 0.33: expected a JSON object")
    return values


def _layers_of(listed: str, label: str) -> dict[str, Any]:
    layers = _parse(listed, label).get("layers")
    if not isinstance(layers, dict):
        raise ModelFileError(f"{label}: _quantization_metadata has no layers: download it again")
    return layers


def _checked_format(config: Any, layer: str, label: str) -> str:
    config = config if isinstance(config, dict) else {}
    params = config.get("params") if isinstance(config.get("params"), dict) else {}
    name = str(config.get("format"))
    if config.get("convrot", (params or {}).get("convrot", False)):
        name += " with rotation (convrot)"
    if name not in (*PLAIN_SCALED, *BLOCKS):
        raise ModelFileError(
            f"{label}: layer {layer} has the format {name}, expected one of {', '.join((*PLAIN_SCALED, *BLOCKS))} or "
            "plain bf16, fp16, fp32, fp8: give such a file, or use this one inside ComfyUI"
        )
    return name


def _e2m1_values(packed: torch.Tensor) -> torch.Tensor:
    """(out, in / 2) bytes, the first column in the high half -> (out, in) float32."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=packed.device)  # (16,)
    packed = packed.view(torch.uint8)
    pairs = torch.stack([packed >> 4, packed & 15], dim=-1)  # (out, in / 2, 2)
    return table[pairs.flatten(1).int()]


def _block_scales(tiled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) from cuBLAS's order: tiles of 128 x 4, in each of which row 32 a + b lies at line b, group a."""
    down, across = -(-rows // 128), -(-columns // 4)
    if tiled.numel() != down * across * 512:
        raise ModelFileError(f"{tiled.numel()} block scales for {rows} x {columns} blocks: damaged or unknown file")
    tiles = tiled.reshape(down, across, 32, 4, 4).transpose(2, 3)  # (down, across, a, b, column)
    plain = tiles.reshape(down, across, 128, 4).transpose(1, 2)  # (down, row, across, column)
    return plain.reshape(down * 128, across * 4)[:rows, :columns].contiguous()
