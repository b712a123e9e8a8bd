"""The images of a latent, sampled one by one, so that image k of a batch is the same as that image alone
(docs/decisions.md#one-noise-field)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...teasr_core.device import DTYPES
from ...teasr_core.errors import InputError, OutputError
from ...teasr_core.sampling.auto_steps import MAX_EVALUATIONS, AutoSteps
from ...teasr_core.sampling.sampler import check_fidelity
from ...teasr_core.sampling.schedule import StepPlan
from ...teasr_core.sampling.smaller_pieces import PieceLimit
from ...teasr_core.tiling import TilePlan
from ..model.conditioning import Conditioning, lq_batch, of_image
from ..model.dual_branch import attached_branch
from ..model.tiles import HostTiles
from .latent_cache import VISITED, Visit, digest
from .progress import Progress
from .run_notes import KEY, Phase, notes_of
from .sampling import ImageJob, choose_steps, sample_image
from .tile_plan import host_plan


@dataclasses.dataclass(frozen=True)
class ImageBatch:
    """A MODEL and what it is to restore: `latent` is the LATENT, `jobs` its images, `tiles` what each is cut into.

    pieces: what memory did not suffice for, of all images.
    """

    model: ModelPatcher
    latent: Mapping[str, Any]
    jobs: tuple[ImageJob, ...]
    tiles: TilePlan
    pieces: PieceLimit = dataclasses.field(default_factory=PieceLimit)

    def choose(self, auto: AutoSteps) -> list[StepPlan]:
        """The steps each image needs. At most MAX_EVALUATIONS model calls an image."""
        progress = Progress(self.model, [MAX_EVALUATIONS] * len(self.jobs), self.tiles.count)
        plans = []
        for k, job in enumerate(self.jobs):
            progress.start_image(k)
            plans.append(choose_steps(self.model, job, auto, self._tiles(progress), progress))
        return plans

    def sample(self, sigmas: Sequence[torch.Tensor], fidelity: float = 0.0, reason: str = "") -> dict[str, Any]:
        """The restored LATENT, with sigmas (N+1,) of each image; reason: why these, for the report."""
        check_fidelity(fidelity)
        steps = [len(times) - 1 for times in sigmas]
        if min(steps) < 1:
            raise InputError(f"sigmas has {min(steps) + 1} entries: expected two or more, so wire TEASRStepSelector's")
        progress = Progress(self.model, steps, self.tiles.count)
        visits = []
        phases: dict[str, Phase] = {}
        with notes_of(self.latent).phase("sample", phases):
            for k, (job, times) in enumerate(zip(self.jobs, sigmas, strict=True)):
                progress.start_image(k)
                visits.append(self._visit(job, times, fidelity, progress))
        tile = max(self.tiles.height, self.tiles.width)
        notes = dataclasses.replace(
            notes_of(self.latent),
            phases=phases,
            tiles=self.tiles.count,
            tile_px=tile * int(self.model.get_model_object("latent_format").spacial_downscale_ratio),
            steps=max(steps),
            dtype=model_dtype(self.model),
            reason=reason,
            largest_piece=min((v.largest_piece for v in visits if v.largest_piece is not None), default=None),
            image_seconds=tuple(visit.seconds for visit in visits),
        )
        samples = torch.cat([visit.samples for visit in visits])  # (B, C, 1, h, w)
        return dict(self.latent) | {"samples": samples, "batch_index": [0] * len(visits), KEY: notes}

    def _tiles(self, progress: Progress) -> HostTiles:
        return HostTiles(self.tiles, progress.on_tile, self.pieces)

    def _visit(self, job: ImageJob, sigmas: torch.Tensor, fidelity: float, progress: Progress) -> Visit:
        """The latent of one image, from memory where it was made before."""
        parts = [getattr(job, part.name) for part in dataclasses.fields(job)]
        key = digest(parts, sigmas, fidelity, dataclasses.astuple(self.tiles))
        visit = VISITED.get(self.model, key)
        if visit is not None:
            return visit
        before = progress.seconds
        samples = check_samples(sample_image(self.model, job, sigmas, self._tiles(progress), progress, fidelity))
        visit = Visit(samples, progress.seconds - before, self.pieces.largest)
        VISITED.put(self.model, key, visit)
        return visit


def image_batch(
    model: ModelPatcher,
    conditioning: Conditioning,
    latent: Mapping[str, Any],
    seed: int,
    negative: Conditioning | None = None,
    tile_px: int = 0,
    overlap_px: int = 0,
) -> ImageBatch:
    """The images of a LATENT from TEASRCondition. InputError when MODEL and latent do not go together."""
    samples = check_latent(model, latent["samples"])  # (B, C, 1, h, w)
    lq_images = lq_batch(conditioning)
    if lq_images not in (1, len(samples)):
        raise InputError(
            f"the latent has {len(samples)} images, the conditioning {lq_images}: expected as many, so wire `latent` "
            "and `conditioning` of one TEASRCondition, and select images before it"
        )
    tiles = host_plan(model, *samples.shape[-2:], tile_px, overlap_px)
    mask = latent.get("noise_mask")
    jobs = tuple(
        ImageJob(
            of_image(conditioning, k),
            None if negative is None else of_image(negative, k),
            samples[k : k + 1],
            mask[k : k + 1] if mask is not None and len(mask) > 1 else mask,
            seed,
        )
        for k in range(len(samples))
    )
    return ImageBatch(model, latent, jobs, tiles)


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


def summary(plans: Sequence[StepPlan]) -> str:
    """The reason of one plan; of several, how many images take how many steps."""
    if len(plans) == 1:
        return plans[0].reason
    steps = [plan.steps for plan in plans]
    counts = ", ".join(f"{steps.count(n)} at {n}" for n in sorted(set(steps)))
    return f"auto: {len(plans)} images, by steps: {counts}"
