"""Weights as ComfyUI's quantised files keep them, unpacked one layer at a time.

Three ways a file names its formats: `comfy_quant` (JSON as bytes, one tensor a layer), `_quantization_metadata` in the
header, and the older `scaled_fp8` mark with `.scale_weight`; a scale beside an fp8 weight without any of them is read
the same way. Formats and layouts: ComfyUI 0.33 (comfy/ops.py, comfy/utils.py) and comfy-kitchen 0.2.31; block scales
lie in the tiles cuBLAS wants (its documentation, "block scaling factors layout").

A rotated weight ("convrot") was multiplied by an orthogonal matrix before it was rounded, group by group of its
columns, and is turned back here. ComfyUI turns its input instead and rounds that too, which is faster and less exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..errors import ModelFileError
from .packed import Packing, chunks
from .safetensors_reader import TensorInfo, WeightReader

MARK = "scaled_fp8"
SCALES = ("weight_scale", "weight_scale_2", "scale_weight", "weight_s_rel", "weight_s_channel", "weight_codebook")
# Of the activations, or what names the format: they are no weights and take no part in unpacking.
ASIDE = ("comfy_quant", "input_scale", "scale_input")
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
PLAIN_SCALED = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
BLOCKS = {"mxfp8": 32, "nvfp4": 16}
FOUR_BITS = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")  # two columns a byte
ALWAYS_ROTATED = ("convrot_w4a4", "asym_w4a8_int8")
FORMATS = (*PLAIN_SCALED, *BLOCKS, *ALWAYS_ROTATED)
# The scales of a layer that must be there, by format; fp8 may do without.
NEEDED = {
    "int8_tensorwise": ("weight_scale",),
    "mxfp8": ("weight_scale",),
    "nvfp4": ("weight_scale", "weight_scale_2"),
    "convrot_w4a4": ("weight_scale",),
    "asym_w4a8_int8": ("weight_s_rel", "weight_s_channel"),
}
# The sixteen values of a 4-bit float (2 exponent bits, 1 mantissa bit), sign in the highest bit.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ROTATION = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))  # its Kronecker powers turn larger groups


@dataclass(frozen=True)
class ComfyPacking(Packing):
    """The tensors are the stored weight and its `scales`, named as in SCALES, in this order.

    rotation: columns that were turned together, 0 for a weight that was not. group: columns that share a scale in
    asym_w4a8_int8.
    """

    scales: tuple[str, ...] = ()
    rotation: int = 0
    group: int = 0

    def describe(self) -> str:
        return f"{self.format} with rotation of {self.rotation}" if self.rotation else self.format

    def unpack(self, tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        stored, scales = tensors[0], dict(zip(self.scales, tensors[1:], strict=True))
        factors = self._factors(scales)
        weight = torch.empty(self.shape, dtype=dtype, device=stored.device)
        for rows in chunks(len(weight), max(1, math.prod(self.shape[1:])), stored.device):
            values = self._values(stored[rows], scales, rows)  # (rows, in) float32
            if self.rotation:
                values = _turned_back(values, self.rotation)
            if factors is not None:
                some = factors if len(factors) == 1 else factors[rows]  # (1 or rows, blocks)
                values.view(len(values), some.shape[1], -1).mul_(some[..., None])
            weight[rows] = values.view(weight[rows].shape)
        return weight

    def _factors(self, scales: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """What the values of a row and of a block of its columns are multiplied by: (1 or out, blocks) float32."""
        if self.format in BLOCKS:
            rows, columns = self.shape[0], self.shape[1] // BLOCKS[self.format]
            codes = _block_scales(scales["weight_scale"].view(torch.uint8), rows, columns)
            if self.format == "nvfp4":
                return codes.view(torch.float8_e4m3fn).float() * scales["weight_scale_2"].float()
            return torch.exp2(codes.float() - 127) * (codes > 0)  # e8m0: the exponent alone
        names = [name for name in ("weight_s_channel", "weight_scale", "scale_weight") if name in scales]
        if not names:
            return None
        factors = scales[names[0]].float().reshape(-1, 1)
        return factors / math.sqrt(self.rotation) if self.rotation else factors  # a power of two

    def _values(self, stored: torch.Tensor, scales: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """The codes of some rows as fresh numbers (rows, in) float32, before scale and rotation."""
        if self.format not in FOUR_BITS:
            return stored.to(torch.float32, copy=True).reshape(len(stored), -1)
        low, high = stored.view(torch.uint8) & 15, stored.view(torch.uint8) >> 4
        if self.format == "nvfp4":
            table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=stored.device)  # (16,)
            return table[torch.stack([high, low], dim=-1).flatten(1).int()]
        codes = torch.stack([low, high], dim=-1).flatten(1)  # (rows, in)
        if self.format == "convrot_w4a4":
            return ((codes ^ 8).to(torch.int8) - 8).float()  # two's complement of four bits
        values = scales["weight_codebook"].float()[codes.int()] if "weight_codebook" in scales else codes.float() - 8
        relative = scales["weight_s_rel"]
        relative = relative.view(torch.float8_e4m3fn) if relative.dtype == torch.uint8 else relative
        values = values.view(len(values), -1, self.group) * relative[rows].float()[..., None]  # (rows, groups, group)
        return values.round().clamp(-127, 127).flatten(1)  # the int8 that the format stands for


def is_side_key(name: str) -> bool:
    """True for a scale or a mark: part of another weight, no weight of the model."""
    return name == MARK or name.rsplit(".", 1)[-1] in (*SCALES, *ASIDE)


def comfy_packings(file: WeightReader, prefix: str) -> dict[str, ComfyPacking]:
    """Layer -> packing of every layer of an open file whose weight is quantised, without the file's prefix.

    ModelFileError for a format that cannot be read here, and for a layer whose tensors do not go together.
    """
    keys, label = list(file.infos), file.path.name
    configs: dict[str, Any] = {}
    for layer in _layers_with(keys, prefix, ("weight",)):
        info = file.infos[f"{prefix}{layer}.weight"]
        if info.dtype in FP8 and len(info.shape) == 2:
            configs[layer] = {"format": FP8[info.dtype]}
    for layer in _layers_with(keys, prefix, ("scale_weight", "weight_scale")):
        configs[layer] = {"format": "float8_e4m3fn"}  # fp8 of either kind: the weight's own dtype decides
    listed = file.metadata.get("_quantization_metadata")
    if listed is not None:
        configs |= {key.removeprefix(prefix): value for key, value in _layers_of(listed, label).items()}
    for layer in _layers_with(keys, prefix, ("comfy_quant",)):
        stored = file.read(f"{prefix}{layer}.comfy_quant")
        configs[layer] = _parse(bytes(stored.to(torch.uint8).flatten().tolist()), label)
    for name in ("pre_quant_scale", "weight_correction"):
        configs |= {layer: {"format": f"with {name}"} for layer in _layers_with(keys, prefix, (name,))}
    for name in ("weight_s_rel", "weight_s_channel", "weight_codebook"):
        for layer in _layers_with(keys, prefix, (name,)):
            if not isinstance(configs.get(layer), dict) or configs[layer].get("format") != "asym_w4a8_int8":
                configs[layer] = {"format": f"with {name}"}
    return {
        layer: _checked_packing(file.infos, f"{prefix}{layer}", config, f"{label}: layer {layer}")
        for layer, config in configs.items()
        if f"{prefix}{layer}.weight" in file.infos
    }


def _checked_packing(infos: Mapping[str, TensorInfo], path: str, config: Any, label: str) -> ComfyPacking:
    name, rotation, group = _checked_config(config, label)
    info = infos[f"{path}.weight"]
    found = {scale: infos[f"{path}.{scale}"] for scale in SCALES if f"{path}.{scale}" in infos}
    missing = [scale for scale in NEEDED.get(name, ()) if scale not in found]
    if missing:
        raise ModelFileError(f"{label}: {name} without {' and '.join(missing)}: the file is incomplete, get it again")
    shape = info.shape
    has_rows = name in PLAIN_SCALED and not rotation  # a scale for each row means something in every shape
    if not shape or (len(shape) != 2 and not has_rows):
        raise ModelFileError(f"{label}: {name} with a weight of {shape}: expected (out, in), get the file again")
    if name in NEEDED and name != "mxfp8" and info.dtype not in (("I8", "U8") if name in FOUR_BITS else ("I8",)):
        called = f"{name} with rotation" if rotation else name
        raise ModelFileError(f"{label}: {called} with a weight in {info.dtype}: expected I8, get the file again")
    shape = (shape[0], 2 * shape[1]) if name in FOUR_BITS else shape
    for divisor, what in ((rotation, "rotation"), (group, "group"), (BLOCKS.get(name, 0), "block")):
        if divisor and shape[1] % divisor:
            raise ModelFileError(
                f"{label}: {name} with {shape[1]} columns and a {what} of {divisor}, which does not divide them: get "
                "the file again"
            )
    sizes = _scale_sizes(name, shape, group)
    found = {scale: one for scale, one in found.items() if scale in sizes}
    for scale, one in found.items():
        if math.prod(one.shape) not in sizes[scale]:
            raise ModelFileError(
                f"{label}.weight: {name} with a {scale} of {one.shape} for a weight of {shape}: the file is damaged"
            )
    size = sum(one.stop - one.start for one in (info, *found.values()))
    return ComfyPacking(name, shape, size, tuple(found), rotation, group)


def _scale_sizes(name: str, shape: tuple[int, ...], group: int) -> dict[str, tuple[int, ...]]:
    """Which scales a format has, and how many numbers each may hold for a weight of `shape`."""
    rows = (1, shape[0])
    if name in BLOCKS:
        blocks = -(-shape[0] // 128) * -(-shape[1] // BLOCKS[name] // 4) * 512
        return {"weight_scale": (blocks,)} | ({"weight_scale_2": (1,)} if name == "nvfp4" else {})
    if name == "asym_w4a8_int8":
        groups = (shape[0] * shape[1] // group,)
        return {"weight_s_rel": groups, "weight_s_channel": (shape[0],), "weight_codebook": (16,)}
    return {"weight_scale": rows, "scale_weight": rows}


def _checked_config(config: Any, label: str) -> tuple[str, int, int]:
    """(format, columns turned together or 0, columns of a group or 0) as a layer's JSON names them."""
    config = config if isinstance(config, dict) else {}
    params = config.get("params") if isinstance(config.get("params"), dict) else {}
    named = {**(params or {}), **config}
    name = str(named.get("format"))
    if name not in FORMATS:
        raise ModelFileError(
            f"{label} has the format {name}, expected one of {', '.join(FORMATS)} or plain bf16, fp16, fp32, fp8: give "
            "such a file, or use this one inside ComfyUI"
        )
    is_rotated = name in ALWAYS_ROTATED or bool(named.get("convrot", False))
    if is_rotated and name not in (*ALWAYS_ROTATED, "int8_tensorwise"):
        raise ModelFileError(f"{label} has {name} with rotation (convrot), which ComfyUI 0.33 does not know")
    rotation = named.get("convrot_groupsize", 256) if is_rotated else 0
    group = named.get("group_size", 16) if name == "asym_w4a8_int8" else 0
    if is_rotated and rotation not in [4**power for power in range(1, 9)]:
        raise ModelFileError(
            f"{label} has a rotation of {rotation!r} columns: expected a power of 4, get the file again"
        )
    if not isinstance(group, int) or (name == "asym_w4a8_int8" and group < 1):
        raise ModelFileError(f"{label} has a group_size of {group!r}: expected a whole number above 0")
    return name, int(rotation), group


def _layers_with(keys: Collection[str], prefix: str, names: tuple[str, ...]) -> Iterator[str]:
    ends = tuple(f".{name}" for name in names)
    return (key.removeprefix(prefix).rsplit(".", 1)[0] for key in keys if key.startswith(prefix) and key.endswith(ends))


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


def _turned_back(values: torch.Tensor, size: int) -> torch.Tensor:
    """(rows, in) times the rotation of `size` columns, which is its own inverse but for the factor 1 / sqrt(size).

    Whole numbers stay whole, so that nothing is rounded even where products are taken in TF32.
    """
    return (values.view(len(values), -1, size) @ _rotation(size, values.device)).flatten(1)


@lru_cache(maxsize=8)
def _rotation(size: int, device: torch.device) -> torch.Tensor:
    """The regular Hadamard matrix (size, size) of 1 and -1. Source: ConvRot, as in comfy-kitchen."""
    with torch.inference_mode(False):
        base = torch.tensor(ROTATION, dtype=torch.float32, device=device)
        matrix = base
        while len(matrix) < size:
            matrix = torch.kron(matrix, base)
        return matrix


def _block_scales(tiled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) from cuBLAS's order: tiles of 128 x 4, in each of which row 32 a + b lies at line b, group a."""
    down, across = -(-rows // 128), -(-columns // 4)
    tiles = tiled.reshape(down, across, 32, 4, 4).transpose(2, 3)  # (down, across, a, b, column)
    plain = tiles.reshape(down, across, 128, 4).transpose(1, 2)  # (down, row, across, column)
    return plain.reshape(down * 128, across * 4)[:rows, :columns].contiguous()
