"""How much memory does a SAD + TAR step take beside a plain flow-matching LoRA step?

Same model, tokens, adapter, optimiser and checkpointing, nothing decoded; random weights, sequential layout. On the CPU
by the allocator, where one run is as good as ten; on a GPU by its counters.
"""

from __future__ import annotations

import argparse
import json

from training.bench.report import format_result, ratios
from training.bench.settings import bench_settings
from training.bench.step import run

BOUND = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--crop-px", type=int, default=256, help="256 is 1024 tokens in each branch")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--device", default="cpu", help="cpu or auto")
    args = parser.parse_args()
    shape = {"layers": args.layers, "heads": args.heads, "width": args.width}
    figures: dict[str, object] = {**shape, "tokens": 2 * (args.crop_px // 8) ** 2, "rank": args.rank, "bound": BOUND}
    for checkpointing in ("all", "none"):
        overrides = [
            "base.dtype=fp32", "run.autocast=false", f"run.device={args.device}", f"train.crop_px={args.crop_px}",
            f"adapter.rank={args.rank}", f"memory.checkpointing={checkpointing}",
        ]  # fmt: skip
        result = run(bench_settings(None, overrides, steps=1, **shape), note=lambda _line: None)
        print(f"checkpointing {checkpointing}\n{format_result(result)}\n")
        full, plain = result.full, result.plain
        figures[checkpointing] = {
            "full_mib": round(full.peak / 2**20, 2),
            "plain_mib": round(plain.peak / 2**20, 2),
            "held_mib": round(full.held / 2**20, 2),
            "ratio_peak": round(ratios(result)["peak"], 4),
            "ratio_added": round(ratios(result)["added"], 4),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
