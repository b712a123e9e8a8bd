"""Where `export` may write: never over the file that it reads, over another file only with --overwrite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from teasr_core.errors import InputError
from teasr_core.weight_files.safetensors_writer import write_atomically
from teasr_core.whole_file import cause_of, check_name, nearest_existing


def check_output(output: Path, source: Path, use_overwrite: bool = True) -> None:
    """Raise InputError for an output that is not .safetensors, is the source, exists already or lies inside a file."""
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    if output.resolve() == source.resolve():
        raise InputError(f"{output} is the file to read: give another name for the output")
    if output.is_dir() or (output.exists() and not use_overwrite):
        raise InputError(f"{output} exists already: give another name or pass --overwrite")
    check_name(output)
    nearest = nearest_existing(output.parent)
    if not nearest.is_dir():
        raise InputError(f"{output} cannot be written: {nearest} is a file, expected a folder; give another name")


def write_output(output: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file, whole or not at all. Raises InputError where that fails, for example on a full disk."""
    try:
        write_atomically(output, tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{output} cannot be written ({cause_of(error)}): make room or give another folder") from error
