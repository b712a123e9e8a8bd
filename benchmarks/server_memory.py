"""Does a ComfyUI server with this pack grow from run to run?

    COMFYUI_PATH=... python -m benchmarks.server_memory [--runs 100] [--warm-up 20]

A real server on the CPU (tests/helpers/comfy/server.py; the interpreter is COMFYUI_PYTHON, else this one) restores one
small picture with TEASRUpscale, every run with another seed and 1 to 8 steps. Resident memory is read after each:
    growth_mib       after the last run, less that after the warm-up
    per_run_mib      slope of a line through all runs after the warm-up
    limit_mib        what `growth_mib` may be; ComfyUI's own caches and the 256 MiB of visited step counts are in it
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.comfy import server as comfy_server

LIMIT_MIB = 150.0


def measure(server: comfy_server.Server, runs: int) -> tuple[list[float], list[float]]:
    """(MiB after each run, seconds of each)."""
    picture = comfy_server.write_picture(server, "photo.png", 48, 40)
    memory, seconds = [], []
    for k in range(runs):
        inputs = {"seed": k, "steps": 1 + k % 8, "size.scale": 2.0}
        prompt = comfy_server.workflow("teasr_quick_start", LoadImage={"image": picture}, TEASRUpscale=inputs)
        start = time.perf_counter()
        run = server.run(prompt)
        if run.error is not None:
            raise SystemExit(f"run {k} failed: {run.error['exception_message']}")
        seconds.append(time.perf_counter() - start)
        memory.append(server.resident_mb())
    return memory, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=20)
    args = parser.parse_args()
    if not 1 <= args.warm_up < args.runs:
        parser.error(f"--warm-up {args.warm_up} of --runs {args.runs}: expected at least 1, and fewer than the runs")
    with comfy_server.from_environment() as server:
        before = server.resident_mb()
        memory, seconds = measure(server, args.runs)
        comfy_server.forget(server)
        freed = server.resident_mb()
    warm = memory[args.warm_up - 1 :]
    for k in range(args.warm_up - 1, args.runs, 10):
        print(f"after run {k + 1}: {memory[k]:.0f} MiB")
    result = {
        "runs": args.runs,
        "warm_up": args.warm_up,
        "empty_server_mib": before,
        "first_run_mib": memory[0],
        "warm_mib": warm[0],
        "last_mib": warm[-1],
        "growth_mib": warm[-1] - warm[0],
        "per_run_mib": float(np.polyfit(range(len(warm)), warm, 1)[0]),
        "after_unload_mib": freed,
        "limit_mib": LIMIT_MIB,
        "seconds_per_run": sum(seconds) / len(seconds),
    }
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
