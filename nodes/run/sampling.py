"""Algorithm 1 in ComfyUI: its guider and its euler sampler, with the pack's noise and tiles, one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...teasr_core.sampling.auto_steps import AutoSteps
from ...teasr_core.sampling.sampler import initial_noise, scaled_noise
from ...teasr_core.sampling.schedule import StepPlan
from ..host.images import between_nodes
from ..model.conditioning import Conditioning, lq_of
from ..model.dual_branch import HOOKS_KEY, TARGET_SIGMA, TILES, recipe_of
from ..model.run_start import FIDELITY
from ..model.tiles import ModelTiles
from .progress import Progress
from .tile_plan import tile_memory

# The scale of classifier-free guidance if a `negative` is wired. TEASR is trained without guidance, so this is an
# experiment (docs/decisions.md#no-guidance).
NEGATIVE_CFG = 2.5


@dataclass(frozen=True)
class ImageJob:
    """One image of a batch as ComfyUI samples it.

    latent (1, C, 1, h, w): the resized picture. Sampling starts from noise alone, so that the latent counts only
    outside the noise mask; where the recipe starts below 1, it is a second encoder's and is mixed with the noise.
    """

    positive: Conditioning
    negative: Conditioning | None
    latent: torch.Tensor
    noise_mask: torch.Tensor | None
    seed: int

    @property
    def unrestored(self) -> torch.Tensor:
        """What stays where nothing is restored (1, C, 1, h, w): the LQ latent."""
        lq = lq_of(self.positive)
        return self.latent if lq is None else lq


def sample_image(
    model: ModelPatcher,
    job: ImageJob,
    sigmas: torch.Tensor,
    tiles: ModelTiles,
    progress: Progress,
    fidelity: float = 0.0,
) -> torch.Tensor:
    """One latent (1, C, 1, h, w), the one that SamplerCustomAdvanced gives with RandomNoise, euler and these sigmas."""
    samples = _run(model, job, comfy.samplers.sampler_object("euler"), sigmas, tiles, progress, fidelity)
    return between_nodes(samples)


def choose_steps(
    model: ModelPatcher, job: ImageJob, auto: AutoSteps, tiles: ModelTiles, progress: Progress, fidelity: float = 0.0
) -> StepPlan:
    """`AutoSteps.choose` for one image, with the noise, model and tiles that `sample_image` uses. Only the pixels that
    `tiles` wants count.
    """
    chosen: list[StepPlan] = []
    recipe = recipe_of(model)

    def probe(
        denoiser: Callable[..., torch.Tensor],
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        **_: Any,
    ) -> torch.Tensor:
        """A sampler function that returns what it starts from. ComfyUI has loaded and prepared the model by then."""

        def velocity(z_t: torch.Tensor, t_cur: torch.Tensor, _: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
            denoised = denoiser(z_t, t_cur, **extra_args | {"model_options": _with_target_time(t_tar, extra_args)})
            progress.on_step(0, denoised, z_t, 0)
            return (z_t - denoised) / t_cur.reshape(-1, 1, 1, 1, 1)  # (1, C, 1, h, w)

        # The LQ latent travels in the conditioning.
        chosen.append(auto.choose(velocity, noise, noise, tiles.wanted, recipe.start_time))
        return noise

    unmasked = ImageJob(job.positive, job.negative, job.latent, None, job.seed)
    fidelity = fidelity if recipe.fidelity_times else 0.0
    sigmas = torch.tensor([recipe.start_time, 0.0])
    _run(model, unmasked, comfy.samplers.KSAMPLER(probe), sigmas, tiles, progress, fidelity)
    return chosen[0]


def _with_target_time(t_tar: torch.Tensor, extra_args: dict[str, Any]) -> dict[str, Any]:
    """The sampler's model options with this target time."""
    options = extra_args["model_options"]
    return options | {"transformer_options": options["transformer_options"] | {TARGET_SIGMA: t_tar}}


def _run(
    model: ModelPatcher,
    job: ImageJob,
    sampler: comfy.samplers.KSAMPLER,
    sigmas: torch.Tensor,
    tiles: ModelTiles,
    progress: Progress,
    fidelity: float = 0.0,
) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": job.positive} | ({} if job.negative is None else {"negative": job.negative}))
    guider.set_cfg(1.0 if job.negative is None else NEGATIVE_CFG)
    options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    transformer_options = options.setdefault("transformer_options", {})
    transformer_options[TILES] = tiles
    if recipe_of(model).fidelity_times:  # it says what noise the condition gets, and the start keeps its own
        transformer_options[FIDELITY], fidelity = fidelity, 0.0
    if tiles.plan.count > 1:
        add_wrapper_with_key(
            WrappersMP.PREPARE_SAMPLING, HOOKS_KEY, tile_memory(tiles.plan), options, is_model_options=True
        )
    add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, HOOKS_KEY, progress.timed, options, is_model_options=True)
    guider.model_options = options
    _, channels, _, height, width = job.latent.shape
    noise = initial_noise(job.seed, channels, height, width)[:, :, None]  # (1, C, 1, h, w)
    return guider.sample(
        scaled_noise(noise, fidelity),
        job.latent,
        sampler,
        sigmas,
        denoise_mask=job.noise_mask,
        callback=progress.on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=job.seed,
    )
