"""How much longer does a restoration take while other programs use the cores, and what do short waits change?

    python -m benchmarks.busy_cores [--side 64] [--busy 2] [--repeats 3]

One step at x4 of a square of `--side` pixels in a process of its own, on all threads of torch: with libgomp's own
waits and with those of the command line (teasr_core/cli/threads.py), in turn, on cores that are free and beside
`--busy` other processes that compute all the time. It needs Linux. The last line is JSON; ratios are to libgomp's own
waits on free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from teasr_core.cli.threads import SPINS
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_restorer
from teasr_core.sampling.schedule import manual_plan

SCALE = 4
BUSY = "import time\nend = time.time() + 3600\nwhile time.time() < end: pass"
WAITS: dict[str, dict[str, str]] = {"own": {}, "short": {"GOMP_SPINCOUNT": SPINS}}


def measure(side: int) -> float:
    """Seconds of one restoration in this process, after one that is not measured."""
    restorer = load_restorer("fp32")
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    request = RestoreRequest(RestoreOptions(TargetSize(SCALE * side, SCALE * side)), manual_plan(1))
    restorer.restore(image, request)
    started = time.perf_counter()
    restorer.restore(image, request)
    return time.perf_counter() - started


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """`count` processes that compute, each in a session of its own, as another program's would be."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def best_of(repeats: int, side: int) -> dict[str, float]:
    """The least seconds with each kind of wait, taken in turn."""
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    best = dict.fromkeys(WAITS, float("inf"))
    for _ in range(repeats):
        for name, variables in WAITS.items():
            command = [sys.executable, "-m", "benchmarks.busy_cores", "--one", "--side", str(side)]
            text = subprocess.run(command, env=plain | variables, check=True, stdout=subprocess.PIPE, text=True).stdout
            best[name] = min(best[name], float(text.split()[-1]))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of the LQ square in pixels")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="how many other processes compute")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments.side))
        return
    free = best_of(arguments.repeats, arguments.side)
    print(f"free cores: {free}", flush=True)
    with busy_cores(arguments.busy):
        busy = best_of(arguments.repeats, arguments.side)
    print(f"{arguments.busy} other processes: {busy}", flush=True)
    result: dict[str, float] = {"threads": torch.get_num_threads(), "busy": arguments.busy}
    for name in WAITS:
        result[f"free_{name}"] = round(free[name] / free["own"], 2)
        result[f"busy_{name}"] = round(busy[name] / free["own"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
