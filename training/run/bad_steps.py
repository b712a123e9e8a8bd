"""Steps without a finite gradient: skipped, counted, written down, and too many in a row end the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teasr_core.errors import TeasrError

from .log import RunLog


class BadSteps:
    """How many a run met: `in_a_row` up to now, and `skipped` in all. Each leaves a `bad_step_*.json` in its folder.

    limit: of those in a row. to_lower: the settings that the last message names.
    """

    def __init__(self, folder: Path, log: RunLog, limit: int, to_lower: str) -> None:
        self.folder, self.log, self.limit, self.to_lower = folder, log, limit, to_lower
        self.in_a_row = 0
        self.skipped = 0

    def passes(self, step: int, first_sample: int, rate: float, values: Mapping[str, float]) -> bool:
        """May the weights be updated? `values` has the losses of the step and its `grad_norm`.

        False for a step to be skipped. DivergedError where it is one too many.
        """
        norm = values["grad_norm"]
        if math.isfinite(norm) and math.isfinite(rate):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.skipped += 1
        report = {"step": step, "first_sample": first_sample, "lr": str(rate), **{k: str(v) for k, v in values.items()}}
        if self.log.is_main:
            (self.folder / f"bad_step_{step:08d}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        met = f"the gradient's norm is {norm:g}, the learning rate {rate:g}"
        self.log.note(f"step {step}: {met}; the weights stay as they are")
        if self.in_a_row >= self.limit:
            raise DivergedError(
                f"{self.in_a_row} steps in a row had no finite gradient or learning rate, the last one is step "
                f"{step}: {self.folder.name}/bad_step_*.json has the losses, the checkpoints are of before; lower "
                f"{self.to_lower} and start again in a new run.output_dir"
            )
        return False

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {"bad_steps": self.in_a_row, "skipped": self.skipped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; a checkpoint from before it counts as one of a run without bad steps."""
        self.in_a_row, self.skipped = state.get("bad_steps", 0), state.get("skipped", 0)


class DivergedError(TeasrError):
    """Training met too many steps without a finite gradient."""
