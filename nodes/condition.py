"""TEASRCondition gives the model the image at its target size, encoded, as its condition."""

from __future__ import annotations

import time
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..teasr_core.image.target_size import mean_scale
from ..teasr_core.model.recipe import Recipe
from ..teasr_core.restore import conditioning_image
from .host.images import between_nodes, rgb_and_alpha, to_host
from .host.sockets import check_conditioning, check_model
from .inputs import CATEGORY, max_megapixels_input, size_input, target_size
from .model.conditioning import Conditioning, with_lq
from .model.dual_branch import attached_branch
from .model.start_vae import start_vae
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
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Wire the MODEL that samples. Only a LoRA with a second VAE encoder needs it (ODTSR).",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The resized picture at the padded size. The sampler starts from noise all the same, and "
                    "keeps the picture only outside a noise mask; a LoRA with a second VAE encoder starts from it.",
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
        model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        rgb, _ = rgb_and_alpha(image)  # (B, 3, H, W)
        target = target_size(size, max_megapixels, image.shape[2], image.shape[1])
        branch = None if model is None else attached_branch(check_model(model))
        recipe = Recipe() if branch is None else branch.recipe
        pictures = picture_vae(vae, recipe)
        check_conditioning(conditioning)
        if negative is not None:
            check_conditioning(negative, "negative")
        started = time.perf_counter()
        resized, padded = conditioning_image(rgb, target, LATENT_MULTIPLE * vae.spacial_compression_encode())
        samples = pictures.encode(padded)  # (B, C, 1, h, w)
        lq = pictures.encode_lq(padded, samples, mean_scale(image.shape[2], image.shape[1], target))  # (B, C, 1, h, w)
        if branch is not None and branch.start_encoder is not None:
            samples = picture_vae(start_vae(vae, branch.start_encoder), recipe).encode(padded)  # (B, C, 1, h, w)
        latent = {
            "samples": between_nodes(samples),
            # ComfyUI's RandomNoise then gives every image the same field (docs/decisions.md#one-noise-field).
            "batch_index": [0] * len(lq),
            NOTES_KEY: RunNotes(size=target).after("encode", started, vae_tile_px=pictures.tile_px, recipe=recipe),
        }
        return io.NodeOutput(
            with_lq(conditioning, lq, recipe.start_encoder_sha256),
            None if negative is None else with_lq(negative, lq, recipe.start_encoder_sha256),
            latent,
            to_host(resized),
        )
