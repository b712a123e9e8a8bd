"""The sampler of TEASRUpscale's auto mode: every image of a batch gets its own number of steps."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...teasr_core.sampling.auto_steps import DEFAULT_TOLERANCE, AutoSteps
from ..inputs import sampling_inputs, tolerance_input
from ..model.conditioning import Conditioning
from ..run.sampling_jobs import sampling_jobs, steps_summary
from .expansion import part_schema


class TEASRUpscaleAutoSampler(io.ComfyNode):
    """TEASRStepSelector and TEASRSampler in one node, image by image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRUpscaleAutoSampler",
            "TEASR Upscale (auto sampler part)",
            "TEASRUpscale",
            inputs=[
                io.Model.Input("model", tooltip="This model samples."),
                io.Conditioning.Input("conditioning", tooltip="TEASRCondition gives it."),
                io.Latent.Input("latent", tooltip="TEASRCondition gives it."),
                *sampling_inputs(),
                tolerance_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Conditioning,
        latent: dict[str, Any],
        seed: int = 0,
        tile_px: int = 0,
        overlap_px: int = 0,
        fidelity: float = 0.0,
        tolerance: float = DEFAULT_TOLERANCE,
    ) -> io.NodeOutput:
        jobs = sampling_jobs(model, conditioning, latent, seed, None, tile_px, overlap_px)
        plans = jobs.choose_steps(AutoSteps(tolerance), fidelity)
        return io.NodeOutput(jobs.sample([plan.taus for plan in plans], fidelity, steps_summary(plans)))
