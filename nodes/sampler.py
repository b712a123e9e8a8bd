"""TEASRSampler: from noise to the restored latent in any number of steps, in tiles where the image is large."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..teasr_core.errors import InputError, OutputError
from ..teasr_core.precision import DTYPES
from .bridge import attached_branch
from .conditioning import Conditioning, lq_batch, of_image
from .host_sampling import Progress, sample_image
from .host_tiles import host_plan
from .run_notes import KEY, Phase, RunNotes, notes_of
from .visited import VISITED, digest

MAX_SEED = 0xFFFFFFFFFFFFFFFF
MAX_TILE_PX = 16384


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The noise. Same seed, same picture, on any device and with any tiles.",
    )


def tile_inputs() -> list[io.Int.Input]:
    return [
        io.Int.Input(
            "tile_px",
            default=0,
            min=0,
            max=MAX_TILE_PX,
            step=32,
            advanced=True,
            tooltip="Side of a tile in pixels. 0 is automatic; a tile as large as the image means no tiles.",
        ),
        io.Int.Input(
            "overlap_px",
            default=0,
            min=0,
            max=MAX_TILE_PX // 2,
            step=16,
            advanced=True,
            tooltip="How far neighbouring tiles overlap, at most half a tile. 0 is automatic.",
        ),
    ]


class TEASRSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRSampler",
            display_name="TEASR Sampler",
            category="TEASR",
            description="Restores the picture that TEASRCondition put into the conditioning.",
            search_aliases=["ksampler", "super resolution", "teasr"],
            inputs=[
                io.Model.Input("model", tooltip="From TEASRLoadBuiltin or TEASRApplyLoRA."),
                io.Conditioning.Input("conditioning", tooltip="From TEASRCondition."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="From TEASRCondition. Wired, it adds guidance (2.5) and doubles the time; rarely needed.",
                ),
                io.Latent.Input("latent", tooltip="From TEASRCondition."),
                io.Sigmas.Input("sigmas", tooltip="From TEASRStepSelector."),
                seed_input(),
                *tile_inputs(),
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
    ) -> io.NodeOutput:
        samples = check_latent(model, latent["samples"])  # (B, C, 1, h, w)
        batch = max(len(samples), lq_batch(conditioning))
        plan = host_plan(model, *samples.shape[-2:], tile_px, overlap_px)
        steps = len(sigmas) - 1
        if steps < 1:
            raise InputError(f"sigmas has {len(sigmas)} entries: expected two or more, so wire TEASRStepSelector's")
        progress = Progress(model, batch, steps, plan.count)
        mask = latent.get("noise_mask")
        phases: dict[str, Phase] = {}
        results = []
        with notes_of(latent).phase("sample", phases):
            for k in range(batch):
                progress.start_image(k)
                job = (
                    of_image(conditioning, k),
                    None if negative is None else of_image(negative, k),
                    samples[k : k + 1] if len(samples) > 1 else samples,
                    mask[k : k + 1] if mask is not None and len(mask) > 1 else mask,
                    sigmas,
                    seed,
                )
                key = digest(*job, dataclasses.astuple(plan))
                result = VISITED.get(model, key)
                if result is None:
                    result = check_samples(sample_image(model, *job, plan, progress))
                    VISITED.put(model, key, result)
                results.append(result)
        notes = RunNotes(phases=phases, tiles=plan.count, steps=steps, dtype=model_dtype(model))
        return io.NodeOutput(latent | {"samples": torch.cat(results), "batch_index": [0] * batch, KEY: notes})


def check_latent(model: ModelPatcher, samples: torch.Tensor) -> torch.Tensor:
    """(B, C, 1, h, w); InputError when VAE and MODEL do not belong together or the MODEL has no TEASR hooks."""
    channels = model.get_model_object("latent_format").latent_channels
    if samples.ndim not in (4, 5) or samples.shape[1] != channels:
        raise InputError(
            f"the latent is {tuple(samples.shape)}, the MODEL works on {channels} channels: wire the VAE that belongs "
            "to this MODEL into TEASRCondition"
        )
    attached_branch(model)
    return samples if samples.ndim == 5 else samples[:, :, None]


def check_samples(samples: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(samples).all()):
        raise OutputError(
            "the sampled latent holds NaN or infinity: usual causes are fp16, sage attention or a broken quantised "
            "base, so use bf16 or fp32, or another attention"
        )
    return samples


def model_dtype(model: ModelPatcher) -> str:
    """The dtype the model computes in, as the report names it."""
    dtype = model.model.get_dtype_inference()
    return next((name for name, value in DTYPES.items() if value == dtype), str(dtype).removeprefix("torch."))
