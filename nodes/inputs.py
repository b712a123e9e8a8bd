"""The menu, widgets and wires that several nodes share. A node file imports them from here, never from another node."""

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

CATEGORY = "image/upscaling/TEASR"  # the place in the menu, inside ComfyUI's own menu of upscalers
MAX_SIDE_PX = 16384
MAX_TILE_PX = 16384
MAX_SEED = 0xFFFFFFFFFFFFFFFF
STEP_MODES = ("manual", "auto")


def size_widgets() -> dict[str, list[io.Input]]:
    """The widgets of each way to give a size, in the order of a `SizeRequest`'s numbers."""

    def side(name: str, default: int, tooltip: str) -> io.Int.Input:
        return io.Int.Input(name, default=default, min=1, max=MAX_SIDE_PX, tooltip=tooltip)

    scale = io.Float.Input(
        "scale",
        default=4.0,
        min=sizes.MIN_SCALE,
        max=sizes.MAX_SCALE,
        step=0.25,
        tooltip="Both sides are multiplied by this. 1 restores without enlarging; below 1 makes the image smaller.",
    )
    megapixels = io.Float.Input(
        "mp",
        default=4.0,
        min=0.01,
        max=256.0,
        step=0.25,
        tooltip="The result has about this many megapixels (1024 x 1024 each) at the same aspect ratio.",
    )
    return {
        "factor": [scale],
        "shortest": [side("px", 1024, "The shorter side of the result has this many pixels.")],
        "longest": [side("px", 2048, "The longer side of the result has this many pixels.")],
        "exact": [
            side("width", 1024, "The result is exactly this many pixels wide; the aspect ratio may change."),
            side("height", 1024, "The result is exactly this many pixels high; the aspect ratio may change."),
        ],
        "megapixels": [megapixels],
    }


def size_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "size",
        options=[io.DynamicCombo.Option(mode, widgets) for mode, widgets in size_widgets().items()],
        tooltip="This chooses how the size of the result is given. Each side may be 0.25 to 8 times the input's.",
    )


def max_megapixels_input() -> io.Float.Input:
    return io.Float.Input(
        "max_megapixels",
        default=0.0,
        min=0.0,
        max=256.0,
        step=0.25,
        advanced=True,
        tooltip="The result never gets larger than this many megapixels (1024 x 1024 each). 0 means no limit.",
    )


def target_size(size: Mapping[str, Any], max_megapixels: float, width: int, height: int) -> TargetSize:
    """The exact target size of an image of width x height.

    `size` is the value of the combo, for example {"size": "factor", "scale": 4}.
    """
    mode = size["size"]
    numbers = tuple(size[widget.id] for widget in size_widgets().get(mode, []))
    target = SizeRequest(mode, numbers, max_megapixels).target(width, height)
    if exceeds_training(width, height, target):
        logging.warning(
            "TEASR: %d x %d to %d x %d is more than %g times: expect less detail",
            width, height, target.width, target.height, TRAINED_SCALE,
        )  # fmt: skip
    return target


def size_values(size: Mapping[str, Any]) -> dict[str, Any]:
    """The value of the combo as a prompt writes it, for example {"size": "factor", "size.scale": 4}."""
    return {key if key == "size" else f"size.{key}": value for key, value in size.items()}


def steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=1,
        min=MIN_STEPS,
        max=MAX_STEPS,
        display_mode=io.NumberDisplay.slider,
        tooltip="1 is the fastest and stays closest to the input; more steps add texture. Every number works.",
    )


def mode_input(name: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=list(STEP_MODES),
        default="manual",
        tooltip="manual takes the number of steps on the slider. auto takes as many as the picture needs, whatever the "
        "slider says.",
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
        tooltip="In auto mode this is the error that a step may have. A smaller one takes more steps.",
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The same seed gives the same noise, on any device and with any tiles.",
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
            tooltip="This is the side of a tile in pixels. 0 is automatic; a tile as large as the image means no "
            "tiles.",
        ),
        io.Int.Input(
            "overlap_px",
            default=0,
            min=0,
            max=MAX_TILE_PX // 2,
            step=16,
            advanced=True,
            tooltip="Neighbouring tiles overlap by this many pixels, at most half a tile. 0 is automatic.",
        ),
    ]


def _share_input(name: str, default: float, tooltip: str, **options: Any) -> io.Float.Input:
    """A dial from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, tooltip=tooltip, **options)


def fidelity_input() -> io.Float.Input:
    return _share_input(
        "fidelity",
        default=0.0,
        optional=True,
        advanced=True,
        tooltip="0 is the model as trained; towards 1 it starts from less noise, adds less texture and stays closer to "
        "the input.",
    )


def strength_input() -> io.Float.Input:
    return _share_input(
        "strength",
        default=1.0,
        display_mode=io.NumberDisplay.slider,
        tooltip="1 is the restored picture, 0 the plain resize (then no model runs).",
    )


def color_fix_input() -> io.Combo.Input:
    return io.Combo.Input(
        "color_fix",
        options=list(COLOR_FIXES),
        default="wavelet",
        tooltip="wavelet follows local colour, adain and lab match the whole picture's, off leaves the model's.",
    )


def color_strength_input(use_advanced: bool) -> io.Float.Input:
    return _share_input(
        "color_strength",
        default=1.0,
        advanced=use_advanced,
        tooltip="This is how much of the colour fix is applied; 0 is none.",
    )


def grain_input() -> io.Float.Input:
    return _share_input(
        "grain",
        default=0.0,
        optional=True,
        advanced=True,
        tooltip="This gives the input's own grain back, against waxy skin. It is measured; a clean picture gets none.",
    )


def region_input() -> io.Mask.Input:
    return io.Mask.Input(
        "region",
        optional=True,
        raw_link=True,
        tooltip="Only the white part of this mask is restored; outside it the picture is the plain resize.",
    )


def lora_strength_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input("lora_strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip=tooltip)


def sampling_inputs() -> list[io.Input]:
    """What both samplers have behind their wires."""
    return [seed_input(), *tile_inputs(), fidelity_input()]


# A node that expands takes its pictures and models as raw links and hands them on to its parts. ComfyUI's cache
# compares links, so that a part whose own links are unchanged does not run again.


def picture_inputs(tooltip: str) -> list[io.Input]:
    """The picture and its target size, the first inputs of TEASRUpscale and TEASRCompareSteps."""
    return [io.Image.Input("image", raw_link=True, tooltip=tooltip), size_input(), max_megapixels_input()]


def restoration_inputs() -> list[io.Input]:
    """The last inputs of TEASRUpscale and TEASRCompareSteps. Saved graphs rely on their order."""
    return [
        seed_input(),
        strength_input(),
        color_fix_input(),
        io.Model.Input(
            "model", optional=True, raw_link=True, tooltip="Wire another TEASR model here, with vae and conditioning."
        ),
        io.Vae.Input("vae", optional=True, raw_link=True, tooltip="Wire the VAE that belongs to the wired model."),
        io.Conditioning.Input(
            "conditioning", optional=True, raw_link=True, tooltip="Wire the prompt that belongs to the wired model."
        ),
        io.Mask.Input(
            "mask", optional=True, raw_link=True, tooltip="This is the picture's transparency, as LoadImage gives it."
        ),
        *tile_inputs(),
        color_strength_input(use_advanced=True),
        fidelity_input(),
    ]
