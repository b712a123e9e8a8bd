"""The `[memory]` table of a distillation config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Strict, with_config

from teasr_core.errors import ConfigError, InputError

from .checkpointing import Checkpointing
from .groups import BLOCK_GROUPS, GroupPlan

AUTO = "auto"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class MemoryConfig:
    """What the user fixes of the memory plan; "auto" leaves the choice to `planner.plan`.

    fp8 and nf4 are the formats of `quantise`, not those of `upscale --dtype`.
    """

    vram_gb: Annotated[float, Strict()] = 0.0  # GiB the plan must fit in; 0 = what the GPU has free
    image_stream: str = AUTO  # precision (bf16, fp8, nf4) and placement (resident, streamed), e.g. "fp8 resident"
    text_stream: str = AUTO
    modulation: str = AUTO  # its placement may also be "swept"
    checkpointing: str = AUTO  # none | every K | all | offload

    @property
    def budget_gb(self) -> float | str:
        return self.vram_gb or AUTO

    @property
    def groups(self) -> dict[str, GroupPlan]:
        """The groups that are fixed. Raises ConfigError for a value that is no plan."""
        values = {group: getattr(self, group) for group in BLOCK_GROUPS}
        return {group: GroupPlan.parse(text, group) for group, text in values.items() if text != AUTO}

    @property
    def fixed_checkpointing(self) -> Checkpointing | None:
        return None if self.checkpointing == AUTO else Checkpointing.parse(self.checkpointing)

    def check(self) -> None:
        """Raise ConfigError for a value that is out of range or no plan."""
        if not 0 <= self.vram_gb < math.inf:
            raise ConfigError(
                f"memory.vram_gb is {self.vram_gb:g}: expected a finite number of GiB, or 0 for what the GPU has free"
            )
        _ = self.groups, self.fixed_checkpointing


def vram_gb_of(text: str) -> float:
    """The value of `MemoryConfig.vram_gb` for the flag `--vram`: GiB, or "auto" for what the GPU has free.

    Raises InputError for anything else.
    """
    if text == AUTO:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise InputError(f"--vram is '{text}': expected auto or GiB above 0, and finite, such as 24")
    return value
