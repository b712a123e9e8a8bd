"""The device's memory as the host sees it: what there is for a tile, what running out looks like, giving it back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import comfy.model_management
import torch

from ...teasr_core import memory


def has_own_memory(device: torch.device) -> bool:
    """Whether it has memory apart from the machine's and tells how much: not a CPU, Apple's, DirectML."""
    host = comfy.model_management
    return not (host.is_device_cpu(device) or host.is_device_mps(device) or host.is_directml_enabled())


def room(device: torch.device | None) -> float:
    """Bytes that work on `device` may take: what is free, and what the host frees for it by unloading models.

    So the second run finds what the first one found, though the model is loaded by then. Infinite where the device has
    no memory of its own: what other programs leave of the machine's changes from run to run, and so would the picture.
    """
    if device is None or not has_own_memory(device):
        return float("inf")
    loaded = [model for model in comfy.model_management.loaded_models() if model is not None]  # None: gone meanwhile
    can_go = sum(model.loaded_size() for model in loaded if model.load_device == device)
    free = comfy.model_management.get_free_memory(device) + can_go
    return max(0.0, free - comfy.model_management.extra_reserved_memory())


def largest_that_fits(sides: Sequence[int], needed: Callable[[int], float], free: float) -> int:
    """The first of the falling `sides` whose bytes `needed` are free, the last where none is."""
    return next((side for side in sides if needed(side) <= free), sides[-1])


def too_large(side_px: int, needed: float, free: float) -> str:
    """E.g. `1024 px would take 9.1 GiB, 6.2 are free`."""
    return f"{side_px} px would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator ran out. The host is asked first: it also clears what CUDA left behind."""
    return comfy.model_management.is_oom(error) or memory.is_out_of_memory(error)


def release() -> None:
    """Give what allocators hold in reserve back to the device."""
    gc.collect()
    comfy.model_management.soft_empty_cache()
