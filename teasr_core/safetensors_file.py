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
