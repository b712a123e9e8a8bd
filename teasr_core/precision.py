"""Which dtype the built-in model runs in (SPEC 11)."""

from __future__ import annotations

import time

import torch

from .errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`fp32`, `bf16` or `auto`: bf16 off the CPU; on a CPU only where a short timed matmul says it is faster."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InputError(f"dtype is '{name}': expected auto, {', '.join(DTYPES)}")
    if device.type != "cpu":
        return torch.bfloat16
    return min(DTYPES.values(), key=_matmul_seconds)


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)


def _matmul_seconds(dtype: torch.dtype, size: int = 512, repeats: int = 5) -> float:
    """Best time of a size x size product; the first call, which may set up kernels, does not count."""
    a = torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times[1:])
