"""TEASRSampler goes from noise to the restored latent in any number of steps, in tiles if the image is large."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from .inputs import CATEGORY, sampling_inputs
from .model.conditioning import Conditioning
from .run.sampling_jobs import sampling_jobs


class TEASRSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRSampler",
            display_name="TEASR Sampler",
            category=CATEGORY,
            description="Restores the picture that TEASRCondition put into the conditioning.",
            search_aliases=["ksampler", "super resolution", "teasr"],
            inputs=[
                io.Model.Input("model", tooltip="TEASRLoadBuiltin or TEASRApplyLoRA gives it."),
                io.Conditioning.Input("conditioning", tooltip="TEASRCondition gives it."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="TEASRCondition gives it. Wired, it adds guidance (2.5) and doubles the time; it is rarely "
                    "needed.",
                ),
                io.Latent.Input("latent", tooltip="TEASRCondition gives it."),
                io.Sigmas.Input("sigmas", tooltip="TEASRStepSelector gives them."),
                *sampling_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Conditioning,
        latent: dict[str, Any],
        sigmas: torch.Tensor,
        seed: int = 0,
        negative: Conditioning | None = None,
        tile_px: int = 0,
        overlap_px: int = 0,
        fidelity: float = 0.0,
    ) -> io.NodeOutput:
        jobs = sampling_jobs(model, conditioning, latent, seed, negative, tile_px, overlap_px)
        return io.NodeOutput(jobs.sample([sigmas] * len(jobs.jobs), fidelity))
