"""The device and the dtype of a standalone model."""

from __future__ import annotations

import time

import torch

from .errors import InputError


def choose_device(name: str) -> torch.device:
    """Return a device by torch's name for it; `auto` is the accelerator that torch finds, else the CPU.

    Raises InputError when there is no such device.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"device is '{name}': expected auto, cpu, or a device of torch's such as cuda or xpu"
        ) from None
    count = torch.accelerator.device_count() if found is not None and found.type == device.type else 0
    if device.type != "cpu" and (device.index or 0) >= count:
        here = f"{torch.accelerator.device_count()} {found.type}" if found is not None else "no accelerator"
        raise InputError(f"device is '{name}', torch finds {here}: choose another, auto or cpu")
    return device


# `auto` takes bf16 on a CPU when it needs at most this share of the time of fp32. With AMX it needs a fraction, without
# hardware support a multiple, so the choice does not flip between two runs.
MAX_BF16_TIME = 0.7
SMALL_SIDE, LARGE_SIDE = 192, 1024  # of the products that are timed
HOPELESS_BF16_TIME = 4.0  # of a small product, beside fp32's: no larger one would turn that round

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


STORAGES = ("fp8", "nf4")  # how `weight_files/qwen_storage.py` keeps weights

OFFLOADS = ("none", "model", "sequential")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `fp32` or `bf16`. `auto` is bf16 on an accelerator, and on a CPU only where a
    short timed product says that it is faster (docs/decisions.md#dtype-on-a-cpu).
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InputError(f"dtype is '{name}': expected auto, {', '.join(DTYPES)}")
    if device.type != "cpu":
        return torch.bfloat16
    times = matmul_seconds()
    return torch.bfloat16 if times[torch.bfloat16] < MAX_BF16_TIME * times[torch.float32] else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)


def matmul_seconds() -> dict[torch.dtype, float]:
    """The best time of a product of square matrices in each dtype, in seconds; only their ratio means anything.

    A small product tells a CPU without bf16 instructions in some hundredths of a second, where the large one would take
    ten seconds. The large one decides on all others.
    """
    small = _product_seconds(SMALL_SIDE)
    if small[torch.bfloat16] > HOPELESS_BF16_TIME * small[torch.float32]:
        return small
    return _product_seconds(LARGE_SIDE)


def _product_seconds(side: int, rounds: int = 4) -> dict[torch.dtype, float]:
    """The best time of `rounds` in each dtype. They take turns, so that a busy machine slows both."""
    operands = {dtype: torch.ones(side, side, dtype=dtype) for dtype in DTYPES.values()}
    best = dict.fromkeys(operands, float("inf"))
    for _ in range(rounds):
        for dtype, a in operands.items():
            start = time.perf_counter()
            torch.mm(a, a)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best
