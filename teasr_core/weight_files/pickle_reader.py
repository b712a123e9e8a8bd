"""Tensors from a .pth file, as torch.save writes them. Nothing but tensors is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import ModelFileError


def read_pickled_tensors(path: Path, expected: str, nested: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The state dict in `path`, on the CPU.

    expected: what the file should be, for the error where there is none. nested: keys under which the state dict may
    lie, tried in this order.
    Raises ModelFileError for a missing or damaged file, and for one that holds more than names and tensors.
    """
    if not path.is_file():
        raise ModelFileError(f"no file at {path}: give {expected}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelFileError(
            f"{path.name} cannot be read as a checkpoint of plain tensors ({cause}): get the file again"
        ) from None
    for key in nested:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    if not isinstance(stored, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in stored.items()
    ):
        raise ModelFileError(f"{path.name} holds {type(stored).__name__}, expected names and tensors alone")
    return dict(stored)
