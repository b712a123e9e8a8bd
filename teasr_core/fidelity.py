"""The fidelity dial: less noise to start from, at a fixed number of steps (METHOD 7).

The noise of Algorithm 1 is what becomes texture, and grain where the model is small. fidelity 0 is the algorithm as
printed; towards 1 the noise fades, the result has less texture and comes closer to the input. At 1 there is none and
the seed plays no part. PSNR rises with it at every number of steps. The other candidate, t_tar = (1 - fidelity)
tau_{i+1}, made it fall (docs/log.md).
"""

from __future__ import annotations

import math

import torch

from .errors import InputError


def check_fidelity(fidelity: float) -> float:
    """InputError unless it is a number from 0 to 1."""
    if not (math.isfinite(fidelity) and 0 <= fidelity <= 1):
        raise InputError(f"fidelity is {fidelity}: expected a number from 0 to 1")
    return fidelity


def quieter(noise: torch.Tensor, fidelity: float) -> torch.Tensor:
    """(1 - fidelity) noise, any shape: a new tensor, at fidelity 0 with the noise's values."""
    return noise * (1 - check_fidelity(fidelity))
