"""TEASRColorFix gives the restored picture the colours of the reference, and crops the padding."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..teasr_core.image.color_fix import fix_color
from ..teasr_core.image.grain import add_grain
from ..teasr_core.image.resize import crop_to
from ..teasr_core.image.target_size import TargetSize
from ..teasr_core.restore import check_result
from .host.images import from_host, to_host
from .host.sockets import check_finite
from .inputs import CATEGORY, MAX_SEED, color_fix_input, color_strength_input, grain_input


class TEASRColorFix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRColorFix",
            display_name="TEASR Color Fix",
            category=CATEGORY,
            description="Crops the picture to the reference's size, even with off, and gives it the colours too.",
            search_aliases=["color match", "color transfer", "wavelet", "teasr"],
            inputs=[
                io.Image.Input("image", tooltip="This is the decoded picture, padding included."),
                io.Image.Input(
                    "reference", tooltip="Wire TEASRCondition's `resized` here. Its size and colours are kept."
                ),
                color_fix_input(),
                color_strength_input(use_advanced=False),
                grain_input(),
                io.Int.Input(
                    "grain_seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    advanced=True,
                    tooltip="The same seed gives the same grain.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        reference: torch.Tensor,
        color_fix: str = "wavelet",
        color_strength: float = 1.0,
        grain: float = 0.0,
        grain_seed: int = 0,
    ) -> io.NodeOutput:
        resized = check_finite(from_host(reference, "reference"), "reference")  # (B or 1, 3, H, W)
        size = TargetSize(width=resized.shape[-1], height=resized.shape[-2])
        cropped = crop_to(from_host(image, "image"), size).contiguous()  # (B, 3, H, W)
        check_result(cropped, resized.expand(len(cropped), -1, -1, -1) if len(resized) == 1 else resized)
        fixed = fix_color(cropped.clamp(0, 1), resized, color_fix, color_strength)
        grained = add_grain(fixed, resized, resized, grain, grain_seed)
        if image.shape[-1] == 4:
            alpha = crop_to(image.movedim(-1, 1)[:, 3:].to(grained), size)  # (B, 1, H, W)
            grained = torch.cat([grained, alpha], dim=1)
        return io.NodeOutput(to_host(grained))
