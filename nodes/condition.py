"""TEASRCondition gives the model the image at its target size, encoded, as its condition."""

from __future__ import annotations

import time
from typing import Any

import torch
from comfy_api.latest import io

from ..teasr_core.restore import conditioning_image
from .host.images import rgb_and_alpha, to_host
from .host.sockets import check_conditioning
from .inputs import CATEGORY, max_megapixels_input, size_input, target_size
from .model.conditioning import Conditioning, with_lq
from .run.run_notes import NOTES_KEY, RunNotes
from .run.vae import picture_vae

# Two tokens of 2 latent pixels each (docs/decisions.md#even-token-grid). Times the VAE's downscale this is 16 px for
# the built-in model and 32 px for Qwen-Image.
LATENT_MULTIPLE = 4


class TEASRCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRCondition",
            display_name="TEASR Condition",
            category=CATEGORY,
            description="Resizes the image to the target size and gives it to the model as the picture to restore.",
            search_aliases=["reference latent", "super resolution", "teasr"],
            inputs=[
                io.Image.Input("image", tooltip="This picture is restored; a batch is restored image by image."),
                io.Vae.Input("vae", tooltip="Wire the VAE that belongs to the model here."),
                io.Conditioning.Input(
                    "conditioning", tooltip="TEASRLoadBuiltin or TEASRApplyLoRA gives it; any other prompt works too."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="It is only for guidance, and gets the same picture as the conditioning.",
                ),
                size_input(),
                max_megapixels_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The resized picture at the padded size. The sampler starts from noise all the same, and "
                    "keeps the picture only outside a noise mask.",
                ),
                io.Image.Output(
                    display_name="resized",
                    tooltip="This is the picture at the exact target size, TEASRColorFix's reference.",
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
        pictures = picture_vae(vae)
        check_conditioning(conditioning)
        if negative is not None:
            check_conditioning(negative, "negative")
        started = time.perf_counter()
        resized, padded = conditioning_image(rgb, target, LATENT_MULTIPLE * vae.spacial_compression_encode())
        samples = pictures.encode(padded)  # (B, C, 1, h, w)
        lq = pictures.encode_lq(padded, samples)  # (B, C, 1, h, w)
        latent = {
            "samples": samples,
            # ComfyUI's RandomNoise then gives every image the same field (docs/decisions.md#one-noise-field).
            "batch_index": [0] * len(lq),
            NOTES_KEY: RunNotes(size=target).after("encode", started, vae_tile_px=pictures.tile_px),
        }
        return io.NodeOutput(
            with_lq(conditioning, lq), None if negative is None else with_lq(negative, lq), latent, to_host(resized)
        )
