"""The times of Algorithm 1, which fall linearly from 1 (noise) to 0 (clean), without a shift."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..errors import InputError

MIN_STEPS, MAX_STEPS = 1, 30


@dataclass(frozen=True)
class StepPlan:
    """The times of a run and the reason for their number: taus (N+1,) float32 on the CPU, and a text for the user."""

    taus: torch.Tensor
    reason: str

    @property
    def steps(self) -> int:
        return len(self.taus) - 1


def check_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or not MIN_STEPS <= steps <= MAX_STEPS:
        raise InputError(f"steps is {steps!r}: give a whole number from {MIN_STEPS} to {MAX_STEPS}")
    return steps


def linear_taus(steps: int, start_time: float = 1.0) -> torch.Tensor:
    """tau_0 = start_time > ... > tau_N = 0, float32 (N+1,). Algorithm 1, which starts at 1.

    Computed in float64 and rounded once, so that every part of the pack holds the same bits.
    """
    check_steps(steps)
    return starting_at((1 - torch.arange(steps + 1, dtype=torch.float64) / steps).float(), start_time)


def starting_at(taus: torch.Tensor, start_time: float) -> torch.Tensor:
    """The times (N+1,) of a schedule that starts at 1, squeezed so that they start at `start_time`; float32."""
    return taus if start_time == 1 else (taus.double() * start_time).float()


def manual_plan(steps: int, start_time: float = 1.0) -> StepPlan:
    """The user's own number of steps."""
    return StepPlan(linear_taus(steps, start_time), f"{steps_text(steps)}, chosen by hand")


def steps_text(steps: int) -> str:
    """Return "1 step" or, for example, "4 steps"."""
    return f"{steps} step{'s' if steps != 1 else ''}"


def parse_steps(text: str, subject: str = "steps are") -> tuple[int, ...]:
    """Parse a list such as "1,2,4,8", in its order. The comma may be the full-width one of Chinese and Japanese.

    Raises InputError for anything else, and for a number that is repeated or outside 1..30.
    subject: the beginning of the error, with its verb.
    """
    if not isinstance(text, str):
        raise InputError(f"{subject} {text!r}: expected whole numbers with commas, such as 1,2,4,8")
    try:
        steps = tuple(check_steps(int(part)) for part in re.split("[,，、]", text))
    except ValueError:
        raise InputError(f"{subject} '{text}': expected whole numbers with commas, such as 1,2,4,8") from None
    if len(set(steps)) < len(steps):
        raise InputError(f"{subject} '{text}': expected each number once; leave the repeated one out")
    return steps
