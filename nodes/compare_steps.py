"""TEASRCompareSteps: one picture at several numbers of steps, side by side, with time and sharpness under each.

It expands as TEASRUpscale does: one load and one encode, then a sampler for each number. ComfyUI's cache and the cache
of visited step counts keep each of them, so that one more number costs that number alone.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..teasr_core.sampling.schedule import parse_steps
from .inputs import (
    color_fix_input,
    color_strength_input,
    fidelity_input,
    max_megapixels_input,
    model_inputs,
    seed_input,
    size_input,
    strength_input,
    tile_inputs,
)
from .parts.expansion import Link, ModelWires, add_condition, add_source

DEFAULT_STEPS = "1,2,4,8"


class TEASRCompareSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRCompareSteps",
            display_name="TEASR Compare Steps",
            category="TEASR",
            description="Restores a picture at several numbers of steps and lays the results side by side, labelled.",
            search_aliases=["grid", "xy plot", "steps", "compare", "teasr"],
            enable_expand=True,
            inputs=[
                # Raw links, as in TEASRUpscale.
                io.Image.Input(
                    "image", raw_link=True, tooltip="The picture to compare on; a batch is done one by one."
                ),
                size_input(),
                max_megapixels_input(),
                io.String.Input(
                    "steps_list",
                    default=DEFAULT_STEPS,
                    tooltip="The numbers of steps, 1 to 30, with commas, such as 1,2,4,8. Each once.",
                ),
                seed_input(),
                strength_input(),
                color_fix_input(),
                *model_inputs(),
                *tile_inputs(),
                color_strength_input(use_advanced=True),
                fidelity_input(),
            ],
            # Lists: see TEASRUpscale.
            outputs=[
                io.Image.Output(display_name="image", tooltip="The labelled grid.", is_output_list=True),
                io.Image.Output(
                    display_name="images", tooltip="The results, in the list's order.", is_output_list=True
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Link,
        size: dict[str, Any],
        max_megapixels: float = 0.0,
        steps_list: str = DEFAULT_STEPS,
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
    ) -> io.NodeOutput:
        numbers = parse_steps(steps_list)
        wires = ModelWires(model, vae, conditioning)
        wires.are_given()
        graph = GraphBuilder()
        resized, _ = add_source(graph, image, mask, size, max_megapixels)
        encoded = add_condition(graph, resized, wires) if strength > 0 else None
        columns: Link | None = None
        for steps in numbers:
            column = graph.node(
                "TEASRCompareStepsColumn",
                steps=steps,
                resized=resized,
                strength=strength,
                color_fix=color_fix,
                color_strength=color_strength,
            )
            if columns is not None:
                column.set_input("before", columns)
            if encoded is not None:
                # An id of its own, since the host caches it by its id: a number keeps its result wherever it moves.
                selector = graph.node("TEASRStepSelector", id=f"steps{steps}", steps=steps, mode="manual")
                sampler = graph.node(
                    "TEASRSampler",
                    sigmas=selector.out(0),
                    seed=seed,
                    tile_px=tile_px,
                    overlap_px=overlap_px,
                    fidelity=fidelity,
                    **encoded.sampler_inputs(),
                )
                encoded.add_decode(graph, sampler.out(0), column)
            columns = column.out(0)
        grid = graph.node("TEASRCompareStepsGrid", columns=columns)
        return io.NodeOutput(grid.out(0), grid.out(1), expand=graph.finalize())
