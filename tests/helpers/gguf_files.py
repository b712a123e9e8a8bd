"""Small GGUF files of a Qwen-Image, written by the package `gguf` as ComfyUI-GGUF's converter lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch

SMALL = 1024  # numbers: a matrix of no more, like every vector, stays in float32
# Where the half-precision scale (and minimum) of a block lie, for formats that the package cannot write.
SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
UNPACKED_HERE = (*WRITABLE, *SCALES_AT)


def write(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    form: str,
    prefix: str = "",
    architecture: str = "qwen_image",
    reshaped: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """The file with its larger matrices in `form`, and what its tensors mean, in float32.

    form: F32, F16, BF16 or a quantised format. One that the package cannot write gets random blocks of the same size.
    reshaped: names that are stored in rows of 256, with their shape in the metadata.
    """
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    meant = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        values = tensor.reshape(-1, 256) if name in reshaped else tensor
        kind = gguf.GGMLQuantizationType[form_of(values, form)]
        packed = pack(values, kind.name, seed=index)
        if name in reshaped:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
        writer.add_tensor(prefix + name, packed, raw_dtype=kind)
        meant[name] = unpack(packed, kind.name).view(tensor.shape)
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def form_of(tensor: torch.Tensor, form: str) -> str:
    """As the converter chooses: F32 for what is small, F16 for rows that blocks do not divide."""
    if tensor.ndim == 1 or tensor.numel() <= SMALL:
        return "F32"
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]][0]
    return "F16" if tensor.shape[-1] % block else form


def pack(tensor: torch.Tensor, form: str, seed: int = 0) -> np.ndarray:
    """(out, in) in `form`, as the package holds it: numbers, or bytes (out, bytes of a row)."""
    kind = gguf.GGMLQuantizationType[form]
    if form not in SCALES_AT:
        return gguf.quants.quantize(tensor.numpy(), kind)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(seed).integers(0, 256, (tensor.numel() // weights, size), dtype=np.uint8)
    for scale, at in zip((1.0, 7.5), SCALES_AT[form], strict=False):
        blocks[:, at : at + 2] = np.full((len(blocks), 1), scale, np.float16).view(np.uint8)
    unit = gguf.quants.dequantize(blocks, kind).std()  # of a scale of 1
    for scale, at in zip((1.0, 7.5), SCALES_AT[form], strict=False):
        own = scale * float(tensor.std()) / unit * np.random.default_rng(seed + at).uniform(0.5, 1.5, (len(blocks), 1))
        blocks[:, at : at + 2] = own.astype(np.float16).view(np.uint8)
    return blocks.reshape(len(tensor), -1)


def unpack(packed: np.ndarray, form: str) -> torch.Tensor:
    """What the package says the bytes mean: (out, in) float32."""
    return torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[form]).copy())
