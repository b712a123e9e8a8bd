"""What is measured, in which order, what each item costs, and which page of the documents it is for.

Sizes are those of the 20B model with random weights. The largest training plan that fits runs first, then inference,
then the other plans from large to small, then single placements and formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MEMORY, QWEN, SPEED = "docs/training/memory.md", "docs/using/qwen_image.md", "docs/results/speed.md"
REFERENCE_TFLOPS = 600.0  # of a bf16 product on the card for which `compute_seconds` was reckoned
TINY_SECONDS = 45.0  # any item at tiny size on a slow CPU
TIMEOUT_FACTOR = 2.0  # of the estimate, after which an item is stopped


@dataclass(frozen=True)
class Item:
    """One measurement, made in a process of its own.

    Attributes:
        work: the function of `work.WORK`, called with `options`, or "comfyui" for a process of ComfyUI's Python.
        setup_seconds: starting, drawing and packing weights. compute_seconds: what scales with the speed of the card.
        gib, host_gib: the memory it needs on the card and on the host; 0 = next to none.
    """

    name: str
    title: str
    page: str
    work: str
    setup_seconds: float
    compute_seconds: float
    gib: float = 0.0
    host_gib: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, tflops: float, is_tiny: bool) -> float:
        """The estimated duration on a card that does so many TFLOP/s in bf16."""
        return TINY_SECONDS if is_tiny else self.setup_seconds + self.compute_seconds * REFERENCE_TFLOPS / tflops

    def refusal(self, gib: float, host_gib: float) -> str:
        """Why the item cannot run with so much free memory; empty where it can."""
        if self.gib > gib:
            return f"needs {self.gib:g} GiB on the card, {gib:.1f} are free"
        if self.host_gib > host_gib:
            return f"needs {self.host_gib:g} GiB of host memory, {host_gib:.1f} are free"
        return ""


def _plan(preset: str, setup: float, compute: float, gib: float, host_gib: float = 4.0, vram_gb: float = 0) -> Item:
    """A training preset's plan; `gib` is its memory.vram_gb, or `vram_gb` in its place."""
    name, title, options = f"train_{preset}", f"SAD + TAR step, preset {preset}", {"preset": preset}
    if not vram_gb:
        return Item(name, title, MEMORY, "train", setup, compute, gib, host_gib, options)
    name, title = f"{name}_in_{vram_gb:g}", f"{title} with memory.vram_gb={vram_gb:g}"
    return Item(name, title, MEMORY, "train", setup, compute, gib, host_gib, options | {"vram_gb": vram_gb})


def _held(name: str, what: str, **groups: str) -> Item:
    """A step over a few full-size blocks whose weights are all held in one way."""
    return Item(f"weights_{name}", f"8 blocks, {what}", MEMORY, "weights", 25, 8, 14, 12, groups)


def _forward(name: str, title: str, setup: float, compute: float, gib: float, host_gib: float, **options: Any) -> Item:
    return Item(f"forward_{name}", title, QWEN, "forward", setup, compute, gib, host_gib, options)


PLANS = (
    _plan("h200", 60, 30, 110),
    _plan("a100-80", 60, 15, 74),
    _plan("48gb", 75, 20, 46),
    _plan("24gb", 110, 25, 23, 25),
    _plan("16gb", 130, 30, 15, 32),
    _plan("16gb", 140, 35, 11, 32, vram_gb=11),  # a card of 12 GB, or one of 16 GB that other programs use too
)
INFERENCE = (
    _forward("bf16", "1024 px tile, bf16", 40, 6, 42, 6),
    _forward("fp8", "1024 px tile, --dtype fp8", 40, 8, 23, 6, storage="fp8"),
    _forward("nf4", "1024 px tile, --dtype nf4", 60, 10, 14, 6, storage="nf4"),
    Item("vae", "Qwen-Image's VAE, 1024 px", QWEN, "vae", 25, 3, 6),
    Item("builtin", "the built-in model, 256 to 1024 px", SPEED, "builtin", 20, 2, 2),
    Item("comfyui", "a native step in ComfyUI beside a stock one", QWEN, "comfyui", 60, 10, 12, 12),
    _forward(
        "sequential", "1024 px tile, fp8, --offload sequential", 90, 12, 6, 26, storage="fp8", offload="sequential"
    ),
)
HELD = (
    _held("resident", "bf16 resident", image_stream="bf16 resident", text_stream="bf16 resident",
          modulation="bf16 resident"),
    _held("streamed", "bf16 streamed", image_stream="bf16 streamed", text_stream="bf16 streamed",
          modulation="bf16 streamed"),
    _held("swept", "modulation swept", image_stream="bf16 resident", text_stream="bf16 resident",
          modulation="bf16 swept"),
    _held("fp8", "fp8 resident", image_stream="fp8 resident", text_stream="fp8 resident", modulation="fp8 resident"),
    _held("nf4", "nf4 resident", image_stream="nf4 resident", text_stream="nf4 resident", modulation="nf4 resident"),
)  # fmt: skip


def ordered(gib: float, host_gib: float) -> list[Item]:
    """All items: the largest plan that fits, inference, the other plans, then placements and formats."""
    first = next((plan for plan in PLANS if not plan.refusal(gib, host_gib)), PLANS[0])
    return [first, *INFERENCE, *(plan for plan in PLANS if plan is not first), *HELD]
