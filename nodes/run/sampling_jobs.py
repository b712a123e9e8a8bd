"""The images of a latent are sampled one by one, so that image k of a batch is the same as that image alone.

See docs/decisions.md#one-noise-field.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...teasr_core.device import DTYPES
from ...teasr_core.errors import InputError, OutputError
from ...teasr_core.sampling.auto_steps import MAX_EVALUATIONS, AutoSteps
from ...teasr_core.sampling.sampler import check_fidelity
from ...teasr_core.sampling.schedule import StepPlan, linear_taus
from ...teasr_core.sampling.smaller_pieces import PieceLimit
from ...teasr_core.tiling import TilePlan
from ..host.images import between_nodes
from ..host.sockets import (
    check_conditioning,
    check_finite,
    check_latent,
    check_model,
    check_seed,
    check_sigmas,
    check_tensor,
)
from ..model.conditioning import Conditioning, conditioning_of_image, lq_batch, lq_of
from ..model.dual_branch import attached_branch
from ..model.tiles import ModelTiles
from .latent_cache import SAMPLED_LATENTS, SampledLatent, digest
from .progress import Progress
from .region import region_of
from .run_notes import NOTES_KEY, notes_of
from .sampling import ImageJob, choose_steps, sample_image
from .tile_plan import plan_model_tiles


@dataclasses.dataclass(frozen=True)
class SamplingJobs:
    """A MODEL and the images that it restores: one job for each image of the LATENT `latent`.

    tiles: how every image is cut. pieces: the largest piece that has not run out of memory, for all images. wanted: for
    each image the latent pixels (h, w) that are needed, None for all of them.
    """

    model: ModelPatcher
    latent: Mapping[str, Any]
    jobs: tuple[ImageJob, ...]
    tiles: TilePlan
    wanted: tuple[torch.Tensor | None, ...]
    pieces: PieceLimit = dataclasses.field(default_factory=PieceLimit)

    @property
    def tile_counts(self) -> list[int]:
        """The number of tiles that are computed for each image."""
        return [len(self.tiles.corners(wanted)) for wanted in self.wanted]

    def choose_steps(self, auto: AutoSteps, fidelity: float = 0.0) -> list[StepPlan]:
        """The steps that each image needs, found with at most MAX_EVALUATIONS model calls an image.

        fidelity counts where the MODEL's recipe gives it a meaning of its own; it does not scale the noise here.
        """
        check_fidelity(fidelity)
        counts = self.tile_counts
        progress = Progress(self.model, [MAX_EVALUATIONS] * len(self.jobs), counts)
        plans = []
        for k, job in enumerate(self.jobs):
            if counts[k] == 0:
                plans.append(StepPlan(linear_taus(1), "auto: nothing to restore"))
                continue
            progress.start_image(k)
            tiles = self._model_tiles(k, progress)
            plans.append(choose_steps(self.model, job, auto, tiles, progress, fidelity))
        return plans

    def sample(self, sigmas: Sequence[torch.Tensor], fidelity: float = 0.0, reason: str = "") -> dict[str, Any]:
        """The restored LATENT. `sigmas` holds the times (N+1,) of each image, `reason` says why these in the report."""
        check_fidelity(fidelity)
        steps = [len(check_sigmas(times)) - 1 for times in sigmas]
        counts = self.tile_counts
        progress = Progress(self.model, steps, counts)
        started = time.perf_counter()
        sampled = []
        for k, times in enumerate(sigmas):
            progress.start_image(k)
            if counts[k] == 0:  # nothing of this image is restored
                sampled.append(SampledLatent(between_nodes(self.jobs[k].unrestored)))
            else:
                sampled.append(self._sample_image(k, times, fidelity, progress))
        tile = max(self.tiles.height, self.tiles.width)
        notes = notes_of(self.latent).after(
            "sample",
            started,
            tiles=max(counts),
            tile_px=tile * int(self.model.get_model_object("latent_format").spacial_downscale_ratio),
            steps=max(steps),
            dtype=model_dtype(self.model),
            reason=reason if any(counts) else "the region is empty: nothing was restored",
            largest_piece=min((one.largest_piece for one in sampled if one.largest_piece is not None), default=None),
            image_seconds=tuple(one.seconds for one in sampled),
        )
        samples = torch.cat([one.samples for one in sampled])  # (B, C, 1, h, w)
        return dict(self.latent) | {"samples": samples, "batch_index": [0] * len(sampled), NOTES_KEY: notes}

    def _model_tiles(self, k: int, progress: Progress) -> ModelTiles:
        return ModelTiles(self.tiles, progress.on_tile, self.pieces, self.wanted[k])

    def _sample_image(self, k: int, sigmas: torch.Tensor, fidelity: float, progress: Progress) -> SampledLatent:
        """The latent of image k, from the cache if it was sampled before."""
        job = self.jobs[k]
        parts = [getattr(job, part.name) for part in dataclasses.fields(job)]
        key = digest(parts, sigmas, fidelity, dataclasses.astuple(self.tiles), self.tiles.corners(self.wanted[k]))
        cached = SAMPLED_LATENTS.get(self.model, key)
        if cached is not None:
            return cached
        before = progress.seconds
        tiles = self._model_tiles(k, progress)
        samples = check_samples(sample_image(self.model, job, sigmas, tiles, progress, fidelity))
        latent = SampledLatent(samples, progress.seconds - before, self.pieces.largest)
        SAMPLED_LATENTS.put(self.model, key, latent)
        return latent


def sampling_jobs(
    model: ModelPatcher,
    conditioning: Conditioning,
    latent: Mapping[str, Any],
    seed: int,
    negative: Conditioning | None = None,
    tile_px: int = 0,
    overlap_px: int = 0,
) -> SamplingJobs:
    """One job for each image of a LATENT from TEASRCondition. InputError if what is wired does not go together."""
    check_conditioning(conditioning)
    if negative is not None:
        check_conditioning(negative, "negative")
    seed = check_seed(seed)
    samples = latent_for(check_model(model), check_latent(latent)["samples"])  # (B, C, 1, h, w)
    attached_branch(model)
    lq_images = lq_batch(conditioning)
    if lq_images not in (1, len(samples)):
        raise InputError(
            f"the latent has {len(samples)} images, the conditioning {lq_images}: expected as many, so wire `latent` "
            "and `conditioning` of one TEASRCondition, and select images before it"
        )
    if negative is not None and lq_of(negative) is not None and lq_batch(negative) != lq_images:
        raise InputError(
            f"the negative has {lq_batch(negative)} images, the conditioning {lq_images}: expected as many, so wire "
            "`negative` and `conditioning` of one TEASRCondition"
        )
    height, width = samples.shape[-2:]
    tiles = plan_model_tiles(model, height, width, tile_px, overlap_px)
    downscale = int(model.get_model_object("latent_format").spacial_downscale_ratio)
    mask, region = noise_mask(latent, downscale), region_of(latent)
    jobs = tuple(
        ImageJob(
            conditioning_of_image(conditioning, k),
            None if negative is None else conditioning_of_image(negative, k),
            samples[k : k + 1],
            None if mask is None else mask[k % len(mask)][None],
            seed,
        )
        for k in range(len(samples))
    )
    wanted = tuple(
        None if region is None else region.of_image(k).in_latent(height, width, downscale) for k in range(len(samples))
    )
    return SamplingJobs(model, latent, jobs, tiles, wanted)


def noise_mask(latent: Mapping[str, Any], downscale: int) -> torch.Tensor | None:
    """The masks (N, 1, H, W) of SetLatentNoiseMask over the padded picture, or None. ComfyUI repeats too few of them.

    ComfyUI stretches a mask over the whole latent. The user drew it for the picture without the padding on the right
    and at the bottom, so that it is padded here as the picture was.
    """
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    mask = check_finite(check_tensor(mask, "noise_mask", "a MASK"), "noise_mask")
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    height, width = (downscale * side for side in latent["samples"].shape[-2:])
    size = notes_of(latent).size
    if size is None or (size.height, size.width) == (height, width):
        return mask
    mask = torch.nn.functional.interpolate(mask, (size.height, size.width), mode="bilinear")
    return torch.nn.functional.pad(mask, (0, width - size.width, 0, height - size.height), mode="replicate")


def latent_for(model: ModelPatcher, samples: torch.Tensor) -> torch.Tensor:
    """The samples as (B, C, 1, h, w). InputError if the VAE that made them does not belong to the MODEL."""
    channels = model.get_model_object("latent_format").latent_channels
    if samples.ndim not in (4, 5) or samples.shape[1] != channels:
        raise InputError(
            f"the latent is {tuple(samples.shape)}, the MODEL works on {channels} channels: wire the VAE that belongs "
            "to this MODEL into TEASRCondition, and its `latent` here"
        )
    return samples if samples.ndim == 5 else samples[:, :, None]


def check_samples(samples: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(samples).all()):
        raise OutputError(
            "the sampled latent holds NaN or infinity: usual causes are fp16, sage attention or a broken quantised "
            "base, so use bf16 or fp32, or another attention"
        )
    return samples


def model_dtype(model: ModelPatcher) -> str:
    """The dtype in which the model computes, as the report names it."""
    dtype = model.model.get_dtype_inference()
    return next((name for name, value in DTYPES.items() if value == dtype), str(dtype).removeprefix("torch."))


def steps_summary(plans: Sequence[StepPlan]) -> str:
    """The reason of a single plan, or how many images take how many steps."""
    if len(plans) == 1:
        return plans[0].reason
    steps = [plan.steps for plan in plans]
    counts = ", ".join(f"{steps.count(n)} at {n}" for n in sorted(set(steps)))
    return f"auto: {len(plans)} images, by steps: {counts}"
