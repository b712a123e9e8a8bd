"""Where a standalone model runs."""

from __future__ import annotations

import torch

from .errors import InputError


def choose_device(name: str) -> torch.device:
    """`auto`: the accelerator torch finds, else the CPU; or a device by torch's name. InputError when it is absent."""
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
