"""TEASRUpscale takes an image and gives an image. It is the node that most people use.

It expands into the building blocks, so that ComfyUI's own cache holds the loaded model and the encoded picture. A new
value of `steps` runs the sampler again and nothing before it; a new value of `strength` runs no model at all.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..teasr_core.sampling.auto_steps import DEFAULT_TOLERANCE
from .host.running import own_id
from .inputs import (
    CATEGORY,
    grain_input,
    mode_input,
    picture_inputs,
    region_input,
    restoration_inputs,
    steps_input,
    tolerance_input,
)
from .parts.expansion import Expansion, Link, ModelWires


class TEASRUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRUpscale",
            display_name="TEASR Upscale",
            category=CATEGORY,
            essentials_category="Image Tools",  # the Essentials tab of the node library
            description="Restores and enlarges a photograph. Wire model, vae and conditioning for another model.",
            search_aliases=["upscale", "super resolution", "restore", "enhance", "enlarge", "denoise", "teasr"],
            enable_expand=True,
            inputs=[
                *picture_inputs("This picture is restored; a batch is restored one by one."),
                steps_input(),
                mode_input("step_mode"),
                *restoration_inputs(),
                tolerance_input(),
                region_input(),
                grain_input(),
            ],
            hidden=[io.Hidden.unique_id],
            # Pictures of several sizes may come in as one list. ComfyUI does not unpack what an expanded graph returns,
            # so that only outputs declared as lists keep those pictures apart.
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True),
                io.Mask.Output(
                    display_name="mask", tooltip="This is the transparency at the new size.", is_output_list=True
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="One line tells size, tiles, steps, seconds and peak memory.",
                    is_output_list=True,
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Link,
        size: dict[str, Any],
        max_megapixels: float = 0.0,
        steps: int = 1,
        step_mode: str = "manual",
        seed: int = 0,
        strength: float = 1.0,
        color_fix: str = "wavelet",
        model: Link | None = None,
        vae: Link | None = None,
        conditioning: Link | None = None,
        mask: Link | None = None,
        tile_px: int = 0,
        overlap_px: int = 0,
        color_strength: float = 1.0,
        fidelity: float = 0.0,
        tolerance: float = DEFAULT_TOLERANCE,
        region: Link | None = None,
        grain: float = 0.0,
    ) -> io.NodeOutput:
        wires = ModelWires(model, vae, conditioning)
        expansion = Expansion(wires, image, mask, size, max_megapixels, strength > 0, region)
        result = expansion.add_result(
            "TEASRUpscaleOutput",
            grain,
            seed,
            strength=strength,
            color_fix=color_fix,
            color_strength=color_strength,
            shown_on=own_id(cls) or "",
        )
        encoded = expansion.encoded
        if encoded is not None:
            options = {"seed": seed, "tile_px": tile_px, "overlap_px": overlap_px, "fidelity": fidelity}
            options |= encoded.sampler_inputs()
            if step_mode == "auto":
                sampler = expansion.graph.node("TEASRUpscaleAutoSampler", tolerance=tolerance, **options)
            else:
                sigmas = expansion.add_selector(steps=steps, mode=step_mode)
                sampler = expansion.graph.node("TEASRSampler", sigmas=sigmas, **options)
            expansion.add_decode(encoded, sampler.out(0), result)
        return io.NodeOutput(result.out(0), result.out(1), result.out(2), expand=expansion.graph.finalize())
