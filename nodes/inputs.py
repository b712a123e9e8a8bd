"""The target-size inputs that TEASRCondition and TEASRUpscale share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..teasr_core.image import target_size as sizes
from ..teasr_core.image.color_fix import COLOR_FIXES
from ..teasr_core.image.target_size import TRAINED_SCALE, SizeRequest, TargetSize, exceeds_training
from ..teasr_core.sampling.auto_steps import DEFAULT_TOLERANCE, MAX_TOLERANCE
from ..teasr_core.sampling.schedule import MAX_STEPS, MIN_STEPS

MAX_SIDE_PX = 16384
# The widgets of each mode below, in the order of a size request's numbers.
SIZE_WIDGETS = {
    "factor": ("scale",),
    "shortest": ("px",),
    "longest": ("px",),
    "exact": ("width", "height"),
    "megapixels": ("mp",),
}


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
                        min=sizes.MIN_SCALE,
                        max=sizes.MAX_SCALE,
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
    numbers = tuple(size[name] for name in SIZE_WIDGETS.get(mode, ()))
    target = SizeRequest(mode, numbers, max_megapixels).target(width, height)
    if exceeds_training(width, height, target):
        logging.warning(
            "TEASR: %d x %d to %d x %d is more than %g times: expect less detail",
            width, height, target.width, target.height, TRAINED_SCALE,
        )  # fmt: skip
    return target


def size_values(size: Mapping[str, Any]) -> dict[str, Any]:
    """The DynamicCombo's value as a prompt writes it: {"size": "factor", "size.scale": 4}."""
    return {key if key == "size" else f"size.{key}": value for key, value in size.items()}


def color_fix_input() -> io.Combo.Input:
    return io.Combo.Input(
        "color_fix",
        options=list(COLOR_FIXES),
        default="wavelet",
        tooltip="wavelet follows local colour, adain and lab match the whole picture's, off leaves the model's.",
    )


def color_strength_input(use_advanced: bool) -> io.Float.Input:
    return io.Float.Input(
        "color_strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        advanced=use_advanced,
        tooltip="How much of the colour fix is applied; 0 is none.",
    )


MAX_SEED = 0xFFFFFFFFFFFFFFFF


MAX_TILE_PX = 16384


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The noise. Same seed, same noise, on any device and with any tiles.",
    )


def tile_inputs() -> list[io.Int.Input]:
    return [
        io.Int.Input(
            "tile_px",
            default=0,
            min=0,
            max=MAX_TILE_PX,
            step=32,
            advanced=True,
            tooltip="Side of a tile in pixels. 0 is automatic; a tile as large as the image means no tiles.",
        ),
        io.Int.Input(
            "overlap_px",
            default=0,
            min=0,
            max=MAX_TILE_PX // 2,
            step=16,
            advanced=True,
            tooltip="How far neighbouring tiles overlap, at most half a tile. 0 is automatic.",
        ),
    ]


def fidelity_input() -> io.Float.Input:
    return io.Float.Input(
        "fidelity",
        optional=True,
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="0 is the model as trained; towards 1 it starts from less noise, adds less texture and stays closer to "
        "the input.",
    )


STEP_MODES = ("manual", "auto")


def steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=1,
        min=MIN_STEPS,
        max=MAX_STEPS,
        display_mode=io.NumberDisplay.slider,
        tooltip="1 is the fastest and closest to the input; more steps add texture. Every number works.",
    )


def mode_input(name: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=list(STEP_MODES),
        default="manual",
        tooltip="manual: the number of steps on the slider. auto: as many as the picture needs, whatever the slider "
        "says.",
    )


def tolerance_input() -> io.Float.Input:
    return io.Float.Input(
        "tolerance",
        optional=True,
        default=DEFAULT_TOLERANCE,
        min=0.001,
        max=MAX_TOLERANCE,
        step=0.005,
        advanced=True,
        tooltip="auto: the error a step may have. Smaller takes more steps.",
    )


def strength_input() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        display_mode=io.NumberDisplay.slider,
        tooltip="1 is the restored picture, 0 the plain resize (then no model runs).",
    )


def model_inputs() -> list[io.Input]:
    """What may be wired beside the picture. Raw links, as the picture."""
    return [
        io.Model.Input(
            "model", optional=True, raw_link=True, tooltip="Another TEASR model, with vae and conditioning."
        ),
        io.Vae.Input("vae", optional=True, raw_link=True, tooltip="The VAE that belongs to the wired model."),
        io.Conditioning.Input(
            "conditioning", optional=True, raw_link=True, tooltip="The prompt that belongs to the wired model."
        ),
        io.Mask.Input(
            "mask", optional=True, raw_link=True, tooltip="The picture's transparency, as LoadImage gives it."
        ),
    ]
