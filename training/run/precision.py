"""Does a run compute in bf16? `run.autocast = true` means: where that is faster."""

from __future__ import annotations

import torch

from teasr_core.device import choose_dtype


def choose_autocast(requested: bool, device: torch.device, mixes_dtypes: bool = False) -> tuple[bool, str]:
    """(whether steps run under bf16 autocast on this device, the line that says so).

    requested: `run.autocast`. mixes_dtypes: whether base and adapter have different dtypes, which only autocast brings
    together. On a CPU both dtypes are timed: one without bf16 instructions takes 15 to 30 times as long in bf16.
    """
    if not requested:
        return False, "run.autocast is false: steps run in the dtype of the weights"
    if device.type != "cpu":
        return True, f"run.autocast is true: steps run in bf16 on {device.type}"
    if choose_dtype("auto", device) == torch.bfloat16:
        return True, "run.autocast is true: steps run in bf16, which is faster than fp32 on this CPU"
    if mixes_dtypes:
        return True, "run.autocast is true: steps run in bf16, slowly on this CPU; base and adapter differ in dtype"
    return False, "run.autocast is true, but steps run in fp32, which is faster than bf16 on this CPU"
