"""What do size and tiles cost, and can the tiles be seen?

    python -m benchmarks.large_images [--sides 512 1024 2048 4096] [--seams 512 1024]

Each size runs in a process of its own, x4 at one step with automatic tiles, so that its peak memory is its own:
    peak_mib, seconds, us_per_pixel   of the whole restoration, without loading
Where untiled is possible (--seams), tiled and untiled are compared at 1 and 4 steps (R7):
    psnr_db    tiled against untiled, decoded, in [0, 1]
    seams      gradient across the lines where tiles begin or end / across the other token edges, both relative to the
               untiled picture; the larger of rows and columns
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time

import torch

from teasr_core.image.target_size import TargetSize
from teasr_core.memory import peak_memory_mb
from teasr_core.restore import Restored, RestoreOptions, RestoreRequest
from teasr_core.restorer import Restorer, load_restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.tiling import plan_tiles

SCALE = 4
SEAM_STEPS = (1, 4)


def scene(side: int) -> torch.Tensor:
    """A square (1, 3, side, side) of waves, edges, a flat part and noise, the same at every size but for its extent."""
    y, x = torch.meshgrid(torch.arange(side) / 32, torch.arange(side) / 32, indexing="ij")
    waves = (torch.sin(1.7 * x + 0.9 * y * y / (1 + y)) + 1) / 2
    edges = ((x.floor() + y.floor()) % 2) * 0.6 + 0.2
    flat = torch.full_like(x, 0.5)
    stack = torch.stack([torch.where(x % 3 < 1, flat, waves), torch.where(y % 3 < 1, flat, edges), waves])
    noise = torch.randn(stack.shape, generator=torch.Generator().manual_seed(0))
    return (stack + 0.03 * noise).clamp(0, 1)[None]


def run(restorer: Restorer, side: int, steps: int, tile_px: int = 0) -> Restored:
    options = RestoreOptions(TargetSize(side, side), color_fix="off")
    return restorer.restore(scene(side // SCALE), RestoreRequest(options, manual_plan(steps), tile_px=tile_px))


def one_size(side: int) -> dict[str, float]:
    restorer = load_restorer("auto")
    run(restorer, 128, 1)  # warm up
    loaded = peak_memory_mb()
    start = time.perf_counter()
    report = run(restorer, side, 1).report
    seconds = time.perf_counter() - start
    return {
        "tiles": report.tiles,
        "peak_mib": round(peak_memory_mb()),
        "loaded_mib": round(loaded),
        "seconds": round(seconds, 2),
        "us_per_pixel": round(1e6 * seconds / side**2, 2),
    }


def edge_energy(image: torch.Tensor, lines: list[int]) -> torch.Tensor:
    """(len(lines),): mean |difference| between the pixel columns k-1 and k of (1, 3, H, W), for every k of lines."""
    return torch.stack([(image[..., k] - image[..., k - 1]).abs().mean() for k in lines])


def seam_ratio(tiled: torch.Tensor, untiled: torch.Tensor, edges: list[int], token_px: int) -> float:
    """How much stronger the columns where tiles begin or end are than the other token edges, 1 where they are not.

    Each column is taken relative to the untiled picture's, since the scene has edges of its own.
    """
    others = [k for k in range(token_px, tiled.shape[-1], token_px) if k not in edges]
    at_edges, elsewhere = (edge_energy(tiled, part) / edge_energy(untiled, part) for part in (edges, others))
    return float(at_edges.mean() / elsewhere.mean())


def seams(side: int) -> dict[str, float]:
    """PSNR and seams of automatic tiles against no tiles, in fp32."""
    restorer = load_restorer("fp32")
    architecture, downscale = restorer.base.architecture, restorer.base.codec.downscale
    tile, overlap = restorer.tile(0, 0)
    plan = plan_tiles(side // downscale, side // downscale, tile, overlap, architecture.block_multiple)
    starts = [offset * downscale for offset in plan.columns[1:]]
    ends = [(offset + plan.width) * downscale for offset in plan.columns[:-1]]
    token_px = architecture.patch_size * downscale
    result = {}
    for steps in SEAM_STEPS:
        tiled, (whole, report) = run(restorer, side, steps).image, run(restorer, side, steps, tile_px=side)
        assert report.tiles == 1
        result[f"psnr_db_{steps}_steps"] = round(-10 * math.log10(float((tiled - whole).square().mean())), 1)
        turned = (tiled.transpose(2, 3), whole.transpose(2, 3))
        ratio = max(seam_ratio(*pair, starts + ends, token_px) for pair in ((tiled, whole), turned))
        result[f"seams_{steps}_steps"] = round(ratio, 3)
    return result


def apart(part: str, side: int) -> dict[str, float]:
    """Run one measurement in a new process."""
    command = [sys.executable, "-m", "benchmarks.large_images", "--part", part, "--side", str(side)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{part} {side}: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="of the result, pixels")
    parser.add_argument("--seams", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--part", choices=("size", "seams"), help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps({"size": one_size, "seams": seams}[arguments.part](arguments.side)))
        return
    result = {f"size_{side}": apart("size", side) for side in arguments.sides}
    result |= {f"seams_{side}": apart("seams", side) for side in arguments.seams}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
