"""How long does the built-in model take, and what do steps, tiles and the dtype cost?

    python -m benchmarks.restore_speed [--repeats 3]

Ratios are taken within one run, because absolute times vary from machine to machine and minute to minute:
    steps_8_to_1     sampling time of 8 steps / (8 x 1 step); R13 asks for at most 1.05
    tiles_overhead   sampling time of 1024x1024 in tiles / (its pixels at the speed of one tile)
    bf16_to_fp32     sampling time in bf16 / in fp32
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

import torch

from teasr_core.image.target_size import TargetSize
from teasr_core.memory import peak_memory_mb
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import Restorer, load_restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.tiling import AUTO_TILE_PX


def seconds(restorer: Restorer, side: int, steps: int, repeats: int, phase: str = "sample") -> float:
    """Best time of `phase` (or "total") for a side/4 square enlarged 4 times."""
    image = torch.rand(1, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    best = float("inf")
    for _ in range(repeats):
        request = RestoreRequest(RestoreOptions(TargetSize(side, side)), manual_plan(steps))
        report = restorer.restore(image, request).report
        best = min(best, report.total_seconds if phase == "total" else report.seconds[phase])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    chosen = load_restorer("auto")
    seconds(chosen, AUTO_TILE_PX, 1, 1)  # warm up
    one_tile = seconds(chosen, AUTO_TILE_PX, 1, repeats)
    tiled = seconds(chosen, 1024, 1, repeats)
    fp32, bf16 = (seconds(load_restorer(name), AUTO_TILE_PX, 1, repeats + 1) for name in ("fp32", "bf16"))
    result = {
        "threads": torch.get_num_threads(),
        "auto_dtype": str(chosen.dtype).removeprefix("torch."),
        "seconds_1024_1_step_total": seconds(chosen, 1024, 1, 1, "total"),
        "steps_8_to_1": seconds(chosen, AUTO_TILE_PX, 8, repeats) / (8 * one_tile),
        "tiles_overhead": tiled / (one_tile * (1024 / AUTO_TILE_PX) ** 2),
        "bf16_to_fp32": bf16 / fp32,
        "peak_mib": peak_memory_mb(),
    }
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
