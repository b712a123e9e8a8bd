"""The result of `bench`, as a table for people and as plain values for JSON."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..memory.meter import OUTSIDE
from ..memory.planner import GIB
from .step import FULL, PLAIN, BenchResult, StepReport

MIB = 2**20
TERA = 1e12


def format_result(result: BenchResult) -> str:
    """A table with two columns, the full step and the plain one."""
    both = (result.full, result.plain)
    largest = max(result.load.peak, *(step.peak for step in both))
    unit, divisor = ("GiB", GIB) if largest >= 10 * GIB else ("MiB", MIB)
    rows = [
        ("", "SAD + TAR", "plain flow"),
        ("s/step", *(f"{step.seconds:.2f}" for step in both)),
        ("forwards of a row", *(f"{step.floor.forwards:g}" for step in both)),
        ("TFLOP, at least", *(f"{step.floor.flop / TERA:.3g}" for step in both)),
        ("TFLOP/s", *(f"{step.floor.flop / TERA / step.seconds:.3g}" for step in both)),
        (f"peak memory, {unit}", "", ""),
        ("  load", f"{result.load.peak / divisor:.2f}", ""),
        ("  before the step", *(f"{step.held / divisor:.2f}" for step in both)),
    ]
    for name in [*result.full.phases, *(name for name in result.plain.phases if name not in result.full.phases)]:
        cells = (f"{step.phases[name] / divisor:.2f}" if name in step.phases else "" for step in both)
        rows.append((f"  {'between phases' if name == OUTSIDE else name}", *cells))
    rows.append(("  whole step", *(f"{step.peak / divisor:.2f}" for step in both)))
    if result.reserved:
        rows.append(("  taken by the allocator", f"{result.reserved / divisor:.2f}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    text = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}".rstrip() for row in rows]
    peak, added = ratios(result)["peak"], ratios(result)["added"]
    text.append(f"SAD + TAR / plain: {peak:.3f} of the peak, {added:.3f} of what a step adds to what is held")
    if not result.settings.use_decode:
        text.append("nothing was decoded: the data loss compares latents (--decode)")
    return "\n".join(text)


def ratios(result: BenchResult) -> dict[str, float]:
    """The full step divided by the plain one: peak memory, what the step adds to the memory before it, seconds."""
    full, plain = result.full, result.plain
    return {
        "peak": full.peak / plain.peak,
        "added": full.added / plain.added,
        "seconds": full.seconds / plain.seconds,
    }


def to_json(result: BenchResult) -> dict[str, Any]:
    """Plain values; memory in bytes."""
    settings, config = result.settings, result.settings.config
    is_cpu = result.device.type == "cpu"
    return {
        "device": "cpu" if is_cpu else torch.get_device_module(result.device).get_device_name(result.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "architecture": settings.architecture.to_json(),
        "crop_px": config.train.crop_px,
        "image_tokens": settings.problem.image_tokens,
        "batch_size": config.train.batch_size,
        "micro_steps": settings.micro_steps,
        "rank": config.adapter.rank,
        "layout": config.train.layout,
        "autocast": config.run.autocast,
        "optimiser": config.optim.kind,
        "decode": settings.use_decode,
        "plan": {
            "vram_gib": config.memory.vram_gb,
            "groups": {name: str(group) for name, group in result.plan.groups.items()},
            "checkpointing": str(result.plan.checkpointing),
            "decode_dtype": result.plan.decode_dtype,
            "device_gib": result.plan.device_gib,
            "host_gib": result.plan.host_gib,
            "lines": {line.name: line.device for line in result.plan.lines},
        },
        "load": {"seconds": result.load_seconds, "peak": result.load.peak, "held": result.load.end},
        FULL: _step(result.full),
        PLAIN: _step(result.plain),
        "ratio": ratios(result),
        "reserved": result.reserved,
    }


def _step(step: StepReport) -> dict[str, Any]:
    return {
        "seconds": step.seconds,
        "forwards": step.floor.forwards,
        "flop": step.floor.flop,
        "held": step.held,
        "peak": step.peak,
        "phases": step.phases,
        "losses": {name: value if math.isfinite(value) else str(value) for name, value in step.losses.items()},
    }
