"""How many steps an image needs: the step-doubling error of Eq. 1-3 against a tolerance.

An any-step model is trained to arrive at the same place in one step and in two steps of half the length (Eq. 4). Where
it does not, the step is too long. The error is measured on the first step of a run of 1 step and of a run of 2, from
pure noise. The two errors give the order at which the error falls, and from that the number of steps that meets the
tolerance, as the step-size control of ODE solvers does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..errors import InputError, OutputError
from ..model.velocity import Velocity
from .schedule import MAX_STEPS, StepPlan, linear_taus, starting_at, steps_text

# In latent units, where every channel of the training pictures has a standard deviation of 1. At 0.12 half of the
# tuning photographs take two steps of the built-in model and half three (docs/log/sampling.md).
DEFAULT_TOLERANCE = 0.12
MAX_TOLERANCE = 10.0

# Calls of the velocity at most: three for one step, two more for two steps, which share one with it.
MAX_EVALUATIONS = 5


@dataclass(frozen=True)
class AutoSteps:
    """Chooses the number of steps for each image. tolerance: above 0 and at most 10, an RMS in latent units."""

    tolerance: float = DEFAULT_TOLERANCE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and 0 < self.tolerance <= MAX_TOLERANCE):
            raise InputError(
                f"tolerance is {self.tolerance}: expected a number above 0, at most {MAX_TOLERANCE:g}; smaller takes "
                "more steps"
            )

    @torch.inference_mode()
    def choose(
        self,
        velocity: Velocity,
        noise: torch.Tensor,
        z_lq: torch.Tensor,
        wanted: torch.Tensor | None = None,
        start_time: float = 1.0,
    ) -> StepPlan:
        """Return the fewest steps whose first step is exact enough for one image, and the reason.

        noise, z_lq: (1, C, H, W), what sampling starts from at `start_time`, and the condition. wanted: (H, W) bool,
        the pixels whose error counts; without it, all. The choice is as deterministic as the velocity. It takes three
        calls of `velocity` where one step is enough, else MAX_EVALUATIONS. Raises OutputError when an error is not a
        number.
        """
        plan = self.plan(FirstStep(velocity, noise.expand_as(z_lq), z_lq, wanted, start_time).error)
        return replace(plan, taus=starting_at(plan.taus, start_time))

    def plan(self, error: Callable[[int], float]) -> StepPlan:
        """Choose from error(1) and, where that is too large, error(2). A smaller tolerance never gives fewer steps.

        From N = 3 on the error is assumed to fall as N^-order, with order = log2(error(1) / error(2)).
        """
        one = error(1)
        if one <= self.tolerance:
            return self._plan(1, f"error {one:.2g} within tolerance {self.tolerance:g}")
        two = error(2)
        measured = f"(1: {one:.2g}, 2: {two:.2g})"
        if two <= self.tolerance:
            return self._plan(2, f"error {two:.2g} within tolerance {self.tolerance:g} {measured}")
        if two >= one:
            return self._plan(MAX_STEPS, f"the most; the error does not fall {measured}")
        order = math.log2(one / two)
        # The logarithm of the number, which itself may be too large for a float.
        log_steps = math.log(2) + math.log(two / self.tolerance) / order
        is_enough = log_steps <= math.log(MAX_STEPS) + 1e-6
        steps = max(3, math.ceil(math.exp(log_steps) - 1e-6)) if is_enough else MAX_STEPS
        expected = f"error about {two * (2 / steps) ** order:.2g}"
        verdict = f"{expected} within" if is_enough else f"the most; {expected} above"
        return self._plan(min(steps, MAX_STEPS), f"{verdict} tolerance {self.tolerance:g} {measured}")

    @staticmethod
    def _plan(steps: int, why: str) -> StepPlan:
        return StepPlan(linear_taus(steps), f"auto: {steps_text(steps)}, {why}")


class FirstStep:
    """The error of the first of N steps from `noise` at `start_time`, for several N. Each velocity is computed once."""

    def __init__(
        self,
        velocity: Velocity,
        noise: torch.Tensor,
        z_lq: torch.Tensor,
        wanted: torch.Tensor | None = None,
        start_time: float = 1.0,
    ) -> None:
        self.velocity, self.noise, self.z_lq, self.wanted = velocity, noise, z_lq, wanted
        self.start_time = start_time
        self.known: dict[float, torch.Tensor] = {}  # t_tar -> v(noise, start_time, z_lq, t_tar) (B, C, H, W)

    def error(self, steps: int) -> float:
        """RMS of (t - s) (v(z_t, t, s) - v2) at t = start_time, s = t (1 - 1/N). Eq. 1, 2, 3 and, in other units, 4.

        v2 = (v(z_t, t, m) + v(z_m, m, s)) / 2 with m = (t + s) / 2 and z_m = z_t - (t - s)/2 v(z_t, t, m): where one
        step ends, against where two halves end.
        """
        t = self.start_time
        s, m = t * (1 - 1 / steps), t * (1 - 1 / (2 * steps))
        v_m = self._from_noise(m)  # (B, C, H, W)
        z_m = self.noise - (t - m) * v_m  # (B, C, H, W)
        v_2 = (v_m + self._call(z_m, m, s)) / 2  # (B, C, H, W)
        difference = (t - s) * (self._from_noise(s) - v_2)  # (B, C, H, W)
        if self.wanted is not None:
            difference = difference[..., self.wanted.to(difference.device)]  # (B, C, pixels)
        error = float(difference.float().square().mean().sqrt())
        if not math.isfinite(error):
            raise OutputError(
                "the step error is NaN or infinity: expected a number; usual causes are fp16, sage attention or a "
                "broken quantised base, so use bf16 or fp32, or another attention"
            )
        return error

    def _from_noise(self, t_tar: float) -> torch.Tensor:
        if t_tar not in self.known:
            self.known[t_tar] = self._call(self.noise, self.start_time, t_tar)
        return self.known[t_tar]

    def _call(self, z_t: torch.Tensor, t_cur: float, t_tar: float) -> torch.Tensor:
        times = torch.tensor([t_cur, t_tar], dtype=torch.float32, device=z_t.device)[:, None].expand(2, len(z_t))
        return self.velocity(z_t, times[0], self.z_lq, times[1])  # (B, C, H, W)
