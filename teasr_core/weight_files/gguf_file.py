"""GGUF files, read by the package `gguf`: names, shapes and formats at once, the tensors one by one.

ComfyUI-GGUF's files of Qwen-Image have ComfyUI's keys and `general.architecture = qwen_image`; other converters keep a
prefix or write another architecture, so that the keys alone decide what a file is. GGUF counts dimensions from the
innermost.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelFileError
from .gguf_blocks import BLOCK_FORMATS, GgufPacking
from .safetensors_reader import TensorInfo

MAGIC = b"GGUF"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # of a tensor that the converter reshaped so that blocks divide its rows
PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8")  # one number after the other


class GgufReader:
    """An open GGUF file with the methods of `safetensors_reader.WeightReader`; use it in a `with` block.

    infos: dtype is GGUF's own name of the format, shape the weight's (out, in).
    Raises ModelFileError without the package `gguf` and for a file that it cannot read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelFileError(f"no weight file at {path}: check the path")
        try:
            import gguf
        except ImportError as error:
            raise ModelFileError(
                f"reading {path.name} needs the package gguf, which cannot be imported here ({error}): pip install gguf"
            ) from None
        self.path = path
        self.metadata: dict[str, str] = {}
        self._quants: Any = gguf.quants
        try:
            reader: Any = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.infos = {name: _info(reader, tensor) for name, tensor in self._tensors.items()}
        except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RuntimeError) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ModelFileError(
                f"{path.name} cannot be read as GGUF ({cause}): it is truncated or damaged, download it again"
            ) from None

    def __enter__(self) -> GgufReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self._tensors = {}  # the file is mapped for as long as one of them lives

    def packing(self, name: str) -> GgufPacking | None:
        """How the tensor `name` is packed; None where `read` gives numbers."""
        info = self.infos[name]
        if info.dtype not in BLOCK_FORMATS:
            return None
        return GgufPacking(info.dtype, info.shape, info.stop - info.start)

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, in memory of its own: its bytes (uint8) where it has a packing, else its numbers.

        The package itself unpacks formats that `gguf_blocks` does not have. ModelFileError where it cannot either.
        """
        info, tensor = self.infos[name], self._tensors[name]
        if info.dtype in BLOCK_FORMATS:
            return torch.from_numpy(np.array(tensor.data))  # (out, bytes of a row)
        if info.dtype in PLAIN:
            stored = torch.from_numpy(np.array(tensor.data))
            return (stored.view(torch.bfloat16) if info.dtype == "BF16" else stored).reshape(info.shape)
        try:
            values = self._quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ModelFileError(
                f"{self.path.name}: '{name}' is in the format {info.dtype}, which cannot be read: expected one of "
                f"{', '.join(BLOCK_FORMATS)}, F16, BF16 and F32, give such a file"
            ) from None
        return torch.from_numpy(np.array(values)).reshape(info.shape)


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF does. ModelFileError when it cannot be opened."""
    return _head(path).startswith(MAGIC)


def architecture(path: Path) -> str:
    """`general.architecture` of a GGUF file, without the package; "?" where it does not come first or is cut."""
    head = _head(path)
    key, string_type, offset = b"general.architecture", 8, 24  # magic, version, two counts: 24 bytes
    if head[offset + 8 :].startswith(key):
        value = head[offset + 8 + len(key) :]
        kind, length = struct.unpack_from("<IQ", value) if len(value) >= 12 else (None, 0)
        if kind == string_type and length <= min(100, len(value) - 12):
            return value[12 : 12 + length].decode("utf-8", "replace")
    return "?"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as cause:
        raise ModelFileError(f"{path.name} cannot be opened ({cause.strerror}): check its permissions") from None


def _info(reader: Any, tensor: Any) -> TensorInfo:
    field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    dimensions = tensor.shape.tolist()[::-1] if field is None else [field.parts[index][0] for index in field.data]
    shape = tuple(int(side) for side in dimensions)
    if math.prod(shape) != tensor.n_elements:
        raise ValueError(f"'{tensor.name}' of {tensor.n_elements} numbers has the original shape {shape}")
    start = int(tensor.data_offset)
    return TensorInfo(tensor.tensor_type.name, shape, start, start + int(tensor.n_bytes))
