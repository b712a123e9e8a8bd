"""TEASRCondition: the image at its target size, encoded, as a condition of the model."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..teasr_core.restore import conditioning_image
from .host.images import rgb_and_alpha, to_host
from .inputs import max_megapixels_input, size_input, target_size
from .model.conditioning import Conditioning, with_lq
from .run.run_notes import KEY, Phase, RunNotes
from .run.vae import HostVae

# Two tokens of 2 latent pixels each (docs/decisions.md#even-token-grid). Times the VAE's downscale this is 16 px for
# the built-in model and 32 px for Qwen-Image.
LATENT_MULTIPLE = 4


class TEASRCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRCondition",
            display_name="TEASR Condition",
            category="TEASR",
            description="Resizes the image to the target size and gives it to the model as the picture to restore.",
            search_aliases=["reference latent", "super resolution", "teasr"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to restore; a batch is restored image by image."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Conditioning.Input(
                    "conditioning", tooltip="From TEASRLoadBuiltin or TEASRApplyLoRA, or any other prompt."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Only for guidance: gets the same picture as the conditioning."
                ),
                size_input(),
                max_megapixels_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent", tooltip="Empty, at the padded size: what the sampler fills."),
                io.Image.Output(
                    display_name="resized", tooltip="The picture at the exact target size: TEASRColorFix's reference."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        vae: Any,
        conditioning: Conditioning,
        size: dict[str, Any],
        max_megapixels: float = 0.0,
        negative: Conditioning | None = None,
    ) -> io.NodeOutput:
        rgb, _ = rgb_and_alpha(image)  # (B, 3, H, W)
        target = target_size(size, max_megapixels, image.shape[2], image.shape[1])
        phases: dict[str, Phase] = {}
        with RunNotes().phase("encode", phases):
            resized, padded = conditioning_image(rgb, target, LATENT_MULTIPLE * vae.spacial_compression_encode())
            host_vae = HostVae(vae)
            lq = host_vae.encode(padded)  # (B, C, 1, h, w)
        latent = {
            "samples": torch.zeros_like(lq),
            # ComfyUI's RandomNoise then gives every image the same field (docs/decisions.md#one-noise-field).
            "batch_index": [0] * len(lq),
            KEY: RunNotes(phases=phases, vae_tile_px=host_vae.tile_px),
        }
        return io.NodeOutput(
            with_lq(conditioning, lq), None if negative is None else with_lq(negative, lq), latent, to_host(resized)
        )
