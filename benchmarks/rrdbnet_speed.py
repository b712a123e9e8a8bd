"""How fast is one step beside the GAN upscaler that most people run, Real-ESRGAN x4plus?

    python -m benchmarks.rrdbnet_speed [--repeats 3] [--sides 128 256]

Its network (RRDBNet, 23 blocks x 64, built by `spandrel`) with random weights: for speed only. Both enlarge the same
square by 4, in turn, on the same threads and in the same precision; times are whole restorations, from LQ pixels to SR
pixels, tiles and codec of ours included. Ratios above 1 say that ours is slower. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from spandrel.architectures.ESRGAN import ESRGAN

from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_restorer
from teasr_core.sampling.schedule import manual_plan

SCALE = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_seconds(rivals: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best time of each, taken in turn so that a busy moment meets them all; one unmeasured round first."""
    best = dict.fromkeys(rivals, float("inf"))
    for round_number in range(repeats + 1):
        for name, rival in rivals.items():
            start = time.perf_counter()
            rival()
            if round_number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256], help="of the LQ square in pixels")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = ESRGAN(num_filters=64, num_blocks=23, scale=SCALE).eval()
    result: dict[str, float] = {"threads": torch.get_num_threads()}
    for name, dtype in DTYPES.items():
        restorer = load_restorer(name)
        network.to(dtype)
        for side in arguments.sides:
            image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
            request = RestoreRequest(RestoreOptions(TargetSize(SCALE * side, SCALE * side)), manual_plan(1))

            def rrdbnet(image: torch.Tensor = image, dtype: torch.dtype = dtype) -> torch.Tensor:
                with torch.inference_mode():
                    return network(image.to(dtype)).float().clamp(0, 1)

            def teasr(image: torch.Tensor = image, request: RestoreRequest = request) -> torch.Tensor:
                return restorer.restore(image, request).image  # noqa: B023 - called within the loop

            seconds = best_seconds({"teasr": teasr, "rrdbnet": rrdbnet}, arguments.repeats)
            for rival, value in seconds.items():
                result[f"{rival}_{side}_{name}_s"] = round(value, 3)
            result[f"ratio_{side}_{name}"] = round(seconds["teasr"] / seconds["rrdbnet"], 3)
            print(f"{side} -> {SCALE * side}, {name}: {seconds}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
