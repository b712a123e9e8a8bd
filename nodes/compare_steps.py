"""TEASRCompareSteps shows one picture at several numbers of steps, with time and sharpness under each.

It expands as TEASRUpscale does: one load and one encode serve a sampler for each number. ComfyUI's cache and the cache
of sampled latents keep every result, so that one more number costs the time of that number alone.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..teasr_core.sampling.schedule import parse_steps
from .inputs import CATEGORY, grain_input, picture_inputs, restoration_inputs
from .parts.expansion import Expansion, Link, ModelWires

DEFAULT_STEPS = "1,2,4,8"


class TEASRCompareSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRCompareSteps",
            display_name="TEASR Compare Steps",
            category=CATEGORY,
            description="Restores a picture at several numbers of steps and lays the results side by side, labelled.",
            search_aliases=["grid", "xy plot", "steps", "compare", "teasr"],
            enable_expand=True,
            inputs=[
                *picture_inputs("The steps are compared on this picture; a batch is done one by one."),
                io.String.Input(
                    "steps_list",
                    default=DEFAULT_STEPS,
                    tooltip="Write the numbers of steps, 1 to 30, with commas, such as 1,2,4,8. Name each once.",
                ),
                *restoration_inputs(),
                grain_input(),
            ],
            # The outputs are lists for the reason that TEASRUpscale gives.
            outputs=[
                io.Image.Output(display_name="image", tooltip="This is the labelled grid.", is_output_list=True),
                io.Image.Output(
                    display_name="images", tooltip="These are the results, in the list's order.", is_output_list=True
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
        grain: float = 0.0,
    ) -> io.NodeOutput:
        numbers = parse_steps(steps_list)
        wires = ModelWires(model, vae, conditioning)
        expansion = Expansion(wires, image, mask, size, max_megapixels, needs_model=strength > 0)
        graph, encoded = expansion.graph, expansion.encoded
        columns: Link | None = None
        for steps in numbers:
            column = expansion.add_result(
                "TEASRCompareStepsColumn",
                grain,
                seed,
                steps=steps,
                strength=strength,
                color_fix=color_fix,
                color_strength=color_strength,
            )
            column.set_input("before", columns)
            if encoded is not None:
                # ComfyUI caches this node by its id. An id that names the number of steps keeps the number's result
                # when it moves to another place in the list.
                sigmas = expansion.add_selector(id=f"steps{steps}", steps=steps, mode="manual")
                sampler = graph.node(
                    "TEASRSampler",
                    sigmas=sigmas,
                    seed=seed,
                    tile_px=tile_px,
                    overlap_px=overlap_px,
                    fidelity=fidelity,
                    **encoded.sampler_inputs(),
                )
                expansion.add_decode(encoded, sampler.out(0), column)
            columns = column.out(0)
        grid = graph.node("TEASRCompareStepsGrid", columns=columns)
        return io.NodeOutput(grid.out(0), grid.out(1), expand=graph.finalize())
