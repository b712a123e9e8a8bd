"""Does choosing the steps by the picture pay? Error against model calls, for fixed numbers and for auto.

    python -m benchmarks.auto_steps PHOTOGRAPHS [--pictures 3] [--side 128] [--lora FILE]

PHOTOGRAPHS holds the evaluation list's pictures (`eval_list.tsv`); from each a square of `side` pixels is degraded and
restored x4 by the built-in model in fp32. The error is the RMS distance to the result of 30 steps, in 8-bit levels. A
tolerance is worth its calls where the pictures' errors lie closer together (`spread`, their standard deviation) than at
the fixed number of the same mean; `calls` counts the choice's own too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.restorer import Restorer, load_restorer
from teasr_core.sampling.auto_steps import DEFAULT_TOLERANCE, AutoSteps, FirstStep
from teasr_core.sampling.sampler import initial_noise, sample
from teasr_core.sampling.schedule import MAX_STEPS, linear_taus
from training.data.held_out import SCALE, EvalPair, load_eval_pairs
from training.degradation.presets import PRESETS

FIXED = (1, 2, 3, 4, 6, 8)
TOLERANCES = (0.4, 0.2, DEFAULT_TOLERANCE, 0.06, 0.03)


@dataclass
class Picture:
    """One picture through the model at any number of steps; every result is made once."""

    restorer: Restorer
    z_lq: torch.Tensor
    results: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def noise(self) -> torch.Tensor:
        return initial_noise(0, *self.z_lq.shape[1:])

    def result(self, steps: int) -> torch.Tensor:
        """(1, 3, H, W), not clamped."""
        if steps not in self.results:
            z_0 = sample(self.restorer.velocity, self.noise, self.z_lq, linear_taus(steps))
            self.results[steps] = self.restorer.base.codec.decode(z_0)
        return self.results[steps]

    def error(self, steps: int) -> float:
        """Distance to the most steps, RMS in 8-bit levels."""
        return 255 * float((self.result(steps) - self.result(MAX_STEPS)).square().mean().sqrt())

    @torch.inference_mode()
    def step_errors(self) -> dict[int, float]:
        first = FirstStep(self.restorer.velocity, self.noise, self.z_lq)
        return {steps: first.error(steps) for steps in (1, 2)}


def prepare(restorer: Restorer, pair: EvalPair, side: int) -> Picture:
    """The middle of the low-quality picture, at its target size in the model's latent."""
    small = side // SCALE
    top = (pair.lr.shape[0] - small) // 2
    lr = torch.tensor(pair.lr[top : top + small, top : top + small]).permute(2, 0, 1)[None].float() / 255
    return Picture(restorer, restorer.base.codec.encode(resize(lr, TargetSize(side, side))))


def row(name: str, pictures: list[Picture], steps: list[int], own_calls: list[int]) -> dict[str, float | str]:
    errors = np.array([picture.error(n) for picture, n in zip(pictures, steps, strict=True)])
    found = {"mean_steps": np.mean(steps), "calls": np.mean(np.add(steps, own_calls)), "error": errors.mean()}
    found |= {"spread": errors.std(), "worst": errors.max()}
    print(f"{name:>12} " + " ".join(f"{key} {value:6.2f} " for key, value in found.items()), steps, flush=True)
    return {"name": name} | {key: round(float(value), 3) for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--side", type=int, default=128, help="one tile: a multiple of 16 up to 512")
    parser.add_argument("--lora", type=Path, help="in place of the shipped one")
    args = parser.parse_args()
    restorer = load_restorer("fp32", args.lora)
    pairs = load_eval_pairs(args.photographs, PRESETS["light"])[: args.pictures]
    pictures = [prepare(restorer, pair, args.side) for pair in pairs]
    rows = [row(f"{n} fixed", pictures, [n] * len(pictures), [0] * len(pictures)) for n in FIXED]
    errors = [picture.step_errors() for picture in pictures]
    for tolerance in TOLERANCES:
        steps = [AutoSteps(tolerance).plan(known.__getitem__).steps for known in errors]
        calls = [3 if n == 1 else 5 for n in steps]
        rows.append(row(f"auto {tolerance:g}", pictures, steps, calls))
    print(json.dumps({"pictures": len(pictures), "side": args.side, "rows": rows}))


if __name__ == "__main__":
    main()
