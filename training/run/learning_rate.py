"""How the learning rate goes from its first value to its last: on a line or along half a cosine."""

from __future__ import annotations

import math


def rate_between(start: float, end: float, step: int, steps: int, schedule: str) -> float:
    """The rate at a 0-based step of `steps`; it reaches `end` after the last one.

    schedule: "linear", or "cosine", which stays longer near both ends.
    Source of the cosine: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5.
    """
    if schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2
    return start + (end - start) * step / steps
