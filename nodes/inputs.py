"""The target-size inputs that TEASRCondition and TEASRUpscale share (SPEC 4, 6)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..teasr_core.errors import InputError
from ..teasr_core.image import resize as geometry
from ..teasr_core.image.target_size import TargetSize

# Above this factor the model has seen nothing like it (SPEC 6).
WARN_SCALE = 4.0
MAX_SIDE_PX = 16384


def size_input() -> io.DynamicCombo.Input:
    def side(name: str, default: int, tooltip: str) -> io.Int.Input:
        return io.Int.Input(name, default=default, min=1, max=MAX_SIDE_PX, tooltip=tooltip)

    return io.DynamicCombo.Input(
        "size",
        options=[
            io.DynamicCombo.Option(
                "factor",
                [
                    io.Float.Input(
                        "scale",
                        default=4.0,
                        min=geometry.MIN_SCALE,
                        max=geometry.MAX_SCALE,
                        step=0.25,
                        tooltip="Both sides times this. 1 restores without enlarging; below 1 makes the image smaller.",
                    )
                ],
            ),
            io.DynamicCombo.Option("shortest", [side("px", 1024, "The shorter side of the result, in pixels.")]),
            io.DynamicCombo.Option("longest", [side("px", 2048, "The longer side of the result, in pixels.")]),
            io.DynamicCombo.Option(
                "exact",
                [
                    side("width", 1024, "Exact width in pixels; the aspect ratio may change."),
                    side("height", 1024, "Exact height in pixels; the aspect ratio may change."),
                ],
            ),
            io.DynamicCombo.Option(
                "megapixels",
                [
                    io.Float.Input(
                        "mp",
                        default=4.0,
                        min=0.01,
                        max=256.0,
                        step=0.25,
                        tooltip="About this many megapixels (1024 x 1024 each) at the same aspect ratio.",
                    )
                ],
            ),
        ],
        tooltip="How the size of the result is given. Each side may be 0.25 to 8 times the input's.",
    )


def max_megapixels_input() -> io.Float.Input:
    return io.Float.Input(
        "max_megapixels",
        default=0.0,
        min=0.0,
        max=256.0,
        step=0.25,
        advanced=True,
        tooltip="Never make the result larger than this many megapixels (1024 x 1024 each). 0 is no limit.",
    )


def target_size(size: Mapping[str, Any], max_megapixels: float, width: int, height: int) -> TargetSize:
    """Exact target of an image of width x height. `size` is the combo's value: {"size": "factor", "scale": 4}."""
    mode = size["size"]
    if mode == "factor":
        target = geometry.size_by_factor(width, height, size["scale"])
    elif mode == "shortest":
        target = geometry.size_by_shortest(width, height, size["px"])
    elif mode == "longest":
        target = geometry.size_by_longest(width, height, size["px"])
    elif mode == "exact":
        target = geometry.size_exact(width, height, size["width"], size["height"])
    elif mode == "megapixels":
        target = geometry.size_by_megapixels(width, height, size["mp"])
    else:
        raise InputError(f"size is {mode!r}: expected factor, shortest, longest, exact or megapixels")
    target = geometry.cap_megapixels(target, max_megapixels)
    if target.width > WARN_SCALE * width or target.height > WARN_SCALE * height:
        logging.warning(
            "TEASR: %d x %d to %d x %d is more than %g times: expect less detail",
            width, height, target.width, target.height, WARN_SCALE,
        )  # fmt: skip
    return target


def size_values(size: Mapping[str, Any]) -> dict[str, Any]:
    """The DynamicCombo's value as a prompt writes it: {"size": "factor", "size.scale": 4}."""
    return {key if key == "size" else f"size.{key}": value for key, value in size.items()}
