"""Random times of the losses, float32 (B,), from an explicit generator (docs/decisions.md#times-of-the-losses)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from teasr_core.sampling.schedule import MAX_STEPS

FLOW_MIN_TIME = 0.02
FAKE_TIMES = (0.02, 0.98)  # a target time of -t nearer to zero could not be told from +t (dtc.MIN_NEGATIVE_TIME)
CONS_MIN_TIME = 1 / MAX_STEPS
CONS_MIN_GAP = 0.02


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def flow_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """t ~ U(0.02, 1) of L_flow (Eq. 5)."""
    return uniform(FLOW_MIN_TIME, 1, count, generator)


def is_boundary_time(boundary_time: float) -> bool:
    """Whether it is a time that `consistency_times` can draw below."""
    return CONS_MIN_TIME < boundary_time <= 1


def one_of(values: Sequence[int], generator: torch.Generator) -> int:
    """Any of `values`; a single one without a draw."""
    return values[int(torch.randint(len(values), (), generator=generator))] if len(values) > 1 else values[0]


def fake_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """t' ~ U(0.02, 0.98) of L_adv, and s of the rectification (Eq. 7, 9)."""
    return uniform(*FAKE_TIMES, count, generator)


def consistency_times(
    count: int, generator: torch.Generator, boundary_time: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, s) with t > s >= 0 of L_cons (Eq. 1-4).

    Half of the rows: t ~ U(1/30, 1), s = t U(0, 1), at least 0.02 apart. A quarter: the same t, s = 0. A quarter:
    neighbours on the linear grid of a random N in 2..30, because that is what Algorithm 1 asks at inference.
    With a boundary_time, half of the rows with s = 0 have t ~ U(1/30, boundary_time) (`losses.with_boundary`).
    """
    t = uniform(CONS_MIN_TIME, 1, count, generator)
    s = torch.minimum(t * torch.rand(count, generator=generator), t - CONS_MIN_GAP)
    kind = torch.rand(count, generator=generator)
    s = torch.where(kind < 0.25, torch.zeros_like(s), s)
    if boundary_time > 0:
        # t anew from what it was, so that the other draws do not depend on boundary_time
        share = (t - CONS_MIN_TIME) / (1 - CONS_MIN_TIME)  # (B,) in [0, 1)
        t = torch.where(kind < 0.125, CONS_MIN_TIME + (boundary_time - CONS_MIN_TIME) * share, t)
    steps = torch.randint(2, MAX_STEPS + 1, (count,), generator=generator)
    k = (torch.rand(count, generator=generator) * steps).floor()  # 0 .. N-1
    on_grid = kind >= 0.75
    t = torch.where(on_grid, (1 - k / steps), t)
    s = torch.where(on_grid, (1 - (k + 1) / steps).clamp_min(0), s)
    return t, s
