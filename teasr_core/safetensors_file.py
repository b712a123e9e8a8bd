"""Reading weight files: safetensors only, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import ModelFileError

_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, string metadata) of a safetensors file.

    ModelFileError for a missing, empty, pickled, truncated or otherwise unreadable file; nothing is unpickled.
    """
    if not path.is_file():
        raise ModelFileError(f"no weight file at {path}: check the path")
    head = path.open("rb").read(4)
    if not head:
        raise ModelFileError(f"{path.name} is empty (0 bytes): download or export it again")
    if head.startswith(_PICKLE_MAGIC):
        raise ModelFileError(f"{path.name} is a pickle (.pt/.ckpt), which can run code: expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{path.name} cannot be read as safetensors ({error}): it is truncated or of another format, get it again"
        ) from None
