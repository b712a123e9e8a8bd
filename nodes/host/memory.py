"""The device's memory as ComfyUI sees it: how much a tile may take, what running out looks like, how to free it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import comfy.model_management
import torch

from ...teasr_core import memory


def has_own_memory(device: torch.device) -> bool:
    """Whether the device has memory apart from the machine's and reports it, unlike a CPU, Apple's GPU or DirectML."""
    host = comfy.model_management
    return not (host.is_device_cpu(device) or host.is_device_mps(device) or host.is_directml_enabled())


def available_bytes(device: torch.device | None) -> float:
    """Bytes that work on `device` may take: the free ones, and those that ComfyUI frees by unloading models.

    So a second run, which finds the model loaded, gets the same answer as the first. The answer is infinite for a
    device without memory of its own: what other programs leave of the machine's memory changes from run to run, and
    tiles that depend on it would change the picture.
    """
    if device is None or not has_own_memory(device):
        return float("inf")
    # An entry is None where its model is gone by now.
    loaded = [model for model in comfy.model_management.loaded_models() if model is not None]
    can_go = sum(model.loaded_size() for model in loaded if model.load_device == device)
    free = comfy.model_management.get_free_memory(device) + can_go
    return max(0.0, free - comfy.model_management.extra_reserved_memory())


def largest_that_fits(sides: Sequence[int], needed: Callable[[int], float], free: float) -> int:
    """The first of the falling `sides` that needs no more than `free` bytes, or the last of them."""
    return next((side for side in sides if needed(side) <= free), sides[-1])


def too_large(side_px: int, needed: float, free: float) -> str:
    """Why a tile is not used, for example `1024 px would take 9.1 GiB, 6.2 are free`."""
    return f"{side_px} px would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator ran out. ComfyUI is asked first, because it also clears what CUDA left behind."""
    return comfy.model_management.is_oom(error) or memory.is_out_of_memory(error)


def release() -> None:
    """Give what allocators hold in reserve back to the device."""
    gc.collect()
    comfy.model_management.soft_empty_cache()
