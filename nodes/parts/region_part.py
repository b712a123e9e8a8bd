"""The part of TEASRUpscale's graph that puts the drawn region into the latent, for every part behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..host.images import size_of
from ..host.sockets import check_latent
from ..run.region import REGION_KEY, drawn_region
from .expansion import part_schema


class TEASRUpscaleRegion(io.ComfyNode):
    """Resizes the region to the result and hands it on in the LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRUpscaleRegion",
            "TEASR Upscale (region part)",
            "TEASRUpscale",
            inputs=[
                io.Latent.Input("latent", tooltip="TEASRCondition gives it."),
                io.Mask.Input("region", tooltip="This part of the picture is restored, 1 = restore."),
                io.Image.Input("image", tooltip="The region was drawn on this picture."),
                io.Image.Input("resized", tooltip="This is the picture at the target size."),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, latent: Mapping[str, Any], region: torch.Tensor, image: torch.Tensor, resized: torch.Tensor
    ) -> io.NodeOutput:
        drawn = drawn_region(region, len(resized), size_of(image), size_of(resized))
        return io.NodeOutput({**check_latent(latent), REGION_KEY: drawn})
