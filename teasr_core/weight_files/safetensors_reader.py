"""A safetensors file read tensor by tensor, without mapping it: for files larger than the memory.

`safetensors.safe_open` maps the whole file privately; where the system counts that as memory to be had (Linux by
default), a 41 GB file cannot be opened on a machine with 24 GB. Here a tensor is read into memory of its own.
Format: 8 bytes length of the header, the header in JSON, the tensors' bytes one after another, little endian.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ModelFileError

LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000  # the format's own limit
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}  # else 1
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. dtype is safetensors' own name: F32, BF16, F16, F8_E4M3, U8 and so on."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0  # bytes after the header
    stop: int = 0


class WeightReader:
    """An open file; use it in a `with` block. `infos` and `metadata` are the header.

    Raises ModelFileError for a missing, truncated, pickled or otherwise unreadable file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelFileError(f"no weight file at {path}: check the path")
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ModelFileError(what_it_is(path, error)) from None
        try:
            self.infos, self.metadata, self._data = _parse_header(self._file, path.stat().st_size)
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            self._file.close()
            raise ModelFileError(what_it_is(path, error)) from None

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def read(self, key: str) -> torch.Tensor:
        """The tensor `key` on the CPU, in memory of its own. ModelFileError when it cannot be read."""
        info = self.infos[key]
        if info.dtype not in DTYPES:
            raise ModelFileError(f"{self.path.name}: '{key}' is of type {info.dtype}, which torch does not have here")
        flat = torch.empty(info.stop - info.start, dtype=torch.uint8)
        if flat.numel():
            try:
                self._file.seek(self._data + info.start)
                count = self._file.readinto(memoryview(flat.numpy().data))
            except OSError as error:
                raise ModelFileError(what_it_is(self.path, error)) from None
            if count != flat.numel():
                raise ModelFileError(f"{self.path.name} ended while '{key}' was read: it was changed meanwhile")
        return flat.view(DTYPES[info.dtype]).reshape(info.shape)


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(dtype and shape of every tensor, string metadata) without reading a tensor. ModelFileError as above."""
    with WeightReader(path) as reader:
        return reader.infos, reader.metadata


def _parse_header(file: Any, size: int) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """(infos, metadata, where the data begin). ValueError and the like when it is no whole safetensors file."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > min(LONGEST_HEADER, size - LENGTH_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is no JSON object of texts")
    data = LENGTH_BYTES + length
    infos = {key: _info(key, values) for key, values in header.items()}
    end = max((info.stop for info in infos.values()), default=0)
    if data + end != size:
        raise ValueError(f"{data + end} bytes expected, {size} found")
    return infos, metadata, data


def _info(key: str, values: dict[str, Any]) -> TensorInfo:
    start, stop = (int(offset) for offset in values["data_offsets"])
    info = TensorInfo(str(values["dtype"]), tuple(int(side) for side in values["shape"]), start, stop)
    if start < 0 or min(info.shape, default=0) < 0 or stop - start != math.prod(info.shape) * BYTES.get(info.dtype, 1):
        raise ValueError(f"'{key}' of {info.shape} {info.dtype} from byte {start} to {stop}")
    return info


_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, string metadata) of a safetensors file.

    ModelFileError for a missing, empty, pickled, truncated or otherwise unreadable file; nothing is unpickled.
    """
    if not path.is_file():
        raise ModelFileError(f"no weight file at {path}: check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(what_it_is(path, error)) from None


def what_it_is(path: Path, error: Exception) -> str:
    """One line on a file that could not be read as safetensors, `error` saying why."""
    # Only after safetensors has refused it: a whole file may begin like a pickle, with its header's length.
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as cause:
        return f"{path.name} cannot be opened ({cause.strerror}): check its permissions"
    if not head:
        return f"{path.name} is empty (0 bytes): download or export it again"
    if head.startswith(_PICKLE_MAGIC):
        return f"{path.name} is a pickle (.pt/.ckpt), which can run code: expected a .safetensors file"
    cause = " ".join(str(error).split())
    return f"{path.name} cannot be read as safetensors ({cause}): it is truncated or of another format, get it again"
