"""TEASRUpscale: an image in, an image out. The node most people use.

It expands into the building blocks, so that ComfyUI's own cache holds the loaded model and the encoded picture: moving
`steps` re-runs the sampler alone, moving `strength` not even that.
"""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..teasr_core.sampling.auto_steps import DEFAULT_TOLERANCE
from .host.text import own_id
from .inputs import (
    color_fix_input,
    color_strength_input,
    fidelity_input,
    max_megapixels_input,
    mode_input,
    model_inputs,
    seed_input,
    size_input,
    steps_input,
    strength_input,
    tile_inputs,
    tolerance_input,
)
from .parts.expansion import Link, ModelWires, add_condition, add_source


class TEASRUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRUpscale",
            display_name="TEASR Upscale",
            category="TEASR",
            description="Restores and enlarges a photograph. Wire model, vae and conditioning for another model.",
            search_aliases=["upscale", "super resolution", "restore", "enhance", "enlarge", "denoise", "teasr"],
            enable_expand=True,
            inputs=[
                # Raw links: the parts this node expands into take the wires themselves (the host caches by wire).
                io.Image.Input("image", raw_link=True, tooltip="The picture to restore; a batch is done one by one."),
                size_input(),
                max_megapixels_input(),
                steps_input(),
                mode_input("step_mode"),
                seed_input(),
                strength_input(),
                color_fix_input(),
                *model_inputs(),
                *tile_inputs(),
                color_strength_input(use_advanced=True),
                fidelity_input(),
                tolerance_input(),
            ],
            hidden=[io.Hidden.unique_id],
            # Lists, since pictures of several sizes may come in as one. The host hands what an expanded graph returns
            # on as it is: only an output that is declared a list keeps the pictures of a list apart.
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True),
                io.Mask.Output(display_name="mask", tooltip="The transparency at the new size.", is_output_list=True),
                io.String.Output(
                    display_name="report",
                    tooltip="Size, tiles, steps, seconds, peak memory: one line.",
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
    ) -> io.NodeOutput:
        wires = ModelWires(model, vae, conditioning)
        wires.are_given()
        graph = GraphBuilder()
        resized, out_mask = add_source(graph, image, mask, size, max_megapixels)
        result = graph.node(
            "TEASRUpscaleOutput",
            resized=resized,
            mask=out_mask,
            strength=strength,
            color_fix=color_fix,
            color_strength=color_strength,
            started=time.perf_counter(),
            shown_on=own_id(cls) or "",
        )
        if strength > 0:
            encoded = add_condition(graph, resized, wires)
            options = {"seed": seed, "tile_px": tile_px, "overlap_px": overlap_px, "fidelity": fidelity}
            options |= encoded.sampler_inputs()
            if step_mode == "auto":
                sampler = graph.node("TEASRUpscaleAutoSampler", tolerance=tolerance, **options)
            else:
                selector = graph.node("TEASRStepSelector", steps=steps, mode=step_mode)
                sampler = graph.node("TEASRSampler", sigmas=selector.out(0), **options)
            encoded.add_decode(graph, sampler.out(0), result)
        return io.NodeOutput(result.out(0), result.out(1), result.out(2), expand=graph.finalize())
