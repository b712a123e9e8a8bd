"""Safetensors files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..whole_file import whole_file


def write_atomically(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Save tensors and string metadata, flushed to the disk; when anything fails the old file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, use_fsync=True) as temporary:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, metadata=dict(metadata))
        os.chmod(temporary, 0o644)  # safetensors makes files that nobody else may read
