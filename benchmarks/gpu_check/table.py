"""The results as Markdown, for docs/training/memory.md and the pages that an item names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.bench.step import FULL, PLAIN
from training.memory.planner import CONTEXT_GIB, GIB

from .items import Item

PLAN_HEAD = ("plan", "image stream", "text stream", "modulation", "checkpointing", "planned", "measured",
             "by the allocator", "SAD + TAR, s", "plain step, s", "peak in")  # fmt: skip
CALL_HEAD = ("what", "weights, GiB", "peak, GiB", "seconds")


def markdown(machine: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], items: Sequence[Item],
             left_out: Mapping[str, str]) -> str:  # fmt: skip
    """Tables of what was measured, then what was not, each with its reason."""
    done = {item.name: results[item.name]["figures"] for item in items if _state(results, item) == "done"}
    plans = [(item, done[item.name]) for item in items if item.name in done and item.work in ("train", "weights")]
    rows = [row for item in items if item.name in done for row in _call_rows(item, done[item.name])]
    parts = [
        f"Measured on {machine['name']} ({machine['gib']:.0f} GiB, {machine['tflops']:.3g} TFLOP/s in matrix products, "
        f"torch {machine['torch']}, CUDA {machine['cuda']}), with random weights."
    ]
    if plans:
        parts.append(_table(PLAN_HEAD, [_plan_row(*plan) for plan in plans]))
        parts.append(
            f"Planned and measured are GiB. Planned includes {CONTEXT_GIB} GiB and 4 % for what tensors do not tell; "
            "measured is the peak of counted tensors, and the allocator holds more than that."
        )
    if rows:
        parts.append(_table(CALL_HEAD, rows))
    if "comfyui" in done:
        found = done["comfyui"]
        parts.append(
            f"In ComfyUI a step of {found['side_px']} px takes {found['ratio']:.3f} of a stock one "
            f"({found['teasr_seconds']:.3f} s and {found['stock_seconds']:.3f} s over {found['layers']} blocks)."
        )
    missing = [_missing(item, results, left_out) for item in items if item.name not in done]
    if missing:
        parts.append("\n".join(["Not measured:", *missing]))
    return "\n\n".join(parts)


def _plan_row(item: Item, figures: Mapping[str, Any]) -> tuple[str, ...]:
    plan, full, plain = figures["plan"], figures[FULL], figures[PLAIN]
    groups = [plan["groups"][name] for name in ("image_stream", "text_stream", "modulation")]
    peak_phase = max(full["phases"], key=full["phases"].get)
    reserved = f"{figures['reserved'] / GIB:.2f}" if figures["reserved"] else "-"
    return (
        item.title, *groups, plan["checkpointing"], f"{plan['device_gib']:.2f}", f"{full['peak'] / GIB:.2f}", reserved,
        f"{full['seconds']:.2f}", f"{plain['seconds']:.2f}", peak_phase,
    )  # fmt: skip


def _call_rows(item: Item, figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each call that was timed: the figures themselves, or the calls in them."""
    calls = {"": figures} if "held_gib" in figures else {k: v for k, v in figures.items() if isinstance(v, Mapping)}
    if item.work not in ("forward", "vae", "builtin"):
        return []
    return [
        (f"{item.title}{', ' if name else ''}{name.replace('_', ' ')}", f"{call['held_gib']:.2f}",
         f"{call['peak_gib']:.2f}", f"{call['seconds']:.3f}")
        for name, call in calls.items()
    ]  # fmt: skip


def _missing(item: Item, results: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str]) -> str:
    state = _state(results, item)
    reasons = [f"it {left_out[item.name]}"] if item.name in left_out else []
    if state:
        reasons.append(f"{state}, {results[item.name]['reason']}")
    reason = "; before: ".join(reasons)
    return f"- `{item.name}` ({item.title}, for {item.page}): {reason}"


def _state(results: Mapping[str, Mapping[str, Any]], item: Item) -> str:
    return str(results.get(item.name, {}).get("state", ""))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
