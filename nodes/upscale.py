"""TEASRUpscale: an image in, an image out. The node most people use.

It expands into the building blocks, so that ComfyUI's own cache holds the loaded model and the encoded picture: moving
`steps` re-runs the sampler alone, moving `strength` not even that.
"""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..teasr_core.errors import InputError
from .color_fix import color_fix_input, color_strength_input
from .sampler import seed_input, tile_inputs
from .size_inputs import max_megapixels_input, size_input, size_values
from .step_selector import mode_input, steps_input

Link = list[Any]


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
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="1 is the restored picture, 0 the plain resize (then no model runs).",
                ),
                color_fix_input(),
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
                *tile_inputs(),
                color_strength_input(use_advanced=True),
            ],
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
    ) -> io.NodeOutput:
        use_own_model = check_wires(model, vae, conditioning)
        graph = GraphBuilder()
        source = graph.node("TEASRUpscaleInput", image=image, max_megapixels=max_megapixels, **size_values(size))
        source.set_input("mask", mask)
        result = graph.node(
            "TEASRUpscaleOutput",
            resized=source.out(0),
            mask=source.out(1),
            strength=strength,
            color_fix=color_fix,
            color_strength=color_strength,
            started=time.perf_counter(),
        )
        if strength > 0:
            if not use_own_model:
                builtin = graph.node("TEASRLoadBuiltin", lora_strength=1.0, dtype="auto")
                model, vae, conditioning = builtin.out(0), builtin.out(1), builtin.out(2)
            # `source` is at the target size already, so that strength 0 needs no VAE: the factor is 1 from here on.
            condition = graph.node(
                "TEASRCondition",
                image=source.out(0),
                vae=vae,
                conditioning=conditioning,
                max_megapixels=0.0,
                **size_values({"size": "factor", "scale": 1.0}),
            )
            selector = graph.node("TEASRStepSelector", steps=steps, mode=step_mode)
            sampler = graph.node(
                "TEASRSampler",
                model=model,
                conditioning=condition.out(0),
                latent=condition.out(2),
                sigmas=selector.out(0),
                seed=seed,
                tile_px=tile_px,
                overlap_px=overlap_px,
            )
            result.set_input("latent", sampler.out(0))
            result.set_input("decoded", graph.node("VAEDecode", samples=sampler.out(0), vae=vae).out(0))
        return io.NodeOutput(result.out(0), result.out(1), result.out(2), expand=graph.finalize())


def check_wires(model: Link | None, vae: Link | None, conditioning: Link | None) -> bool:
    """Whether a model is wired; all three or none. InputError naming the missing one."""
    wires = {"model": model, "vae": vae, "conditioning": conditioning}
    missing = [name for name, link in wires.items() if link is None]
    if missing and len(missing) < len(wires):
        raise InputError(
            f"{' and '.join(name for name in wires if name not in missing)} wired, {' and '.join(missing)} not: wire "
            f"{' and '.join(missing)} too, or unplug the rest for the built-in model"
        )
    return not missing
