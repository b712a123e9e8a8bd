"""What is checked and prepared when a sampler starts on a TEASR MODEL, one of TEASR's own or a stock one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch

from ...teasr_core.errors import InputError
from ...teasr_core.model.recipe import Recipe
from ...teasr_core.sampling.sampler import noised
from ..host.sockets import check_sigmas
from .conditioning import LQ_KEY, START_KEY, lq_latents

# Transformer options: the fidelity of a MODEL whose recipe gives it a meaning, and the noise that follows from it.
FIDELITY = "teasr_fidelity"
CONDITION_NOISE = "teasr_condition_noise"


@dataclass(frozen=True)
class ConditionNoise:
    """Noise (B, C, 1, H, W) and the time to which it is mixed into the LQ latent. It is the noise of the sampling."""

    noise: torch.Tensor
    time: float

    def mixed(self, z_lq: torch.Tensor, batch: int) -> torch.Tensor:
        """The LQ latent (1 or `batch`, C, 1, H, W) with this noise, for a model call on `batch` rows."""
        noise = self.noise.to(z_lq)
        if batch % len(noise) or z_lq.shape[1:] != noise.shape[1:]:
            raise InputError(
                f"the model is called on {batch} latents of {tuple(z_lq.shape[1:])}, the sampling began with noise of "
                f"{tuple(noise.shape)}: expected whole pictures, so remove the node that cuts or adds latents"
            )
        rows = noise.repeat(batch // len(noise), 1, 1, 1, 1)  # ComfyUI calls the model on all conditionings at once
        return noised(z_lq.expand_as(rows), rows, self.time)


@dataclass(frozen=True)
class RunStart:
    """OUTER_SAMPLE wrapper: before anything is loaded, InputError for times or latents that do not suit the MODEL."""

    recipe: Recipe

    def __call__(
        self,
        executor: Any,
        noise: torch.Tensor,
        latent: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        *args: Any,
        **kw: Any,
    ) -> Any:
        check_sigmas(sigmas)
        guider = executor.class_obj
        check_channels(guider)
        check_whole(guider)
        check_sampling(guider.model_patcher.get_model_object("model_sampling"))
        self._check_start(guider, sigmas)
        if self.recipe.fidelity_times:
            options = guider.model_options.setdefault("transformer_options", {})  # they belong to this run alone
            time = self.recipe.lq_time(options.get(FIDELITY, 0.0))
            field = noise if noise.ndim == 5 else noise[:, :, None]
            if time > 0:
                options[CONDITION_NOISE] = ConditionNoise(field, time)
        if denoise_mask is not None and self.recipe.uses_start_latent:
            noise, latent = towards_lq(guider, noise, latent, float(sigmas[0]))
        return executor(noise, latent, sampler, sigmas, denoise_mask, *args, **kw)

    def _check_start(self, guider: Any, sigmas: torch.Tensor) -> None:
        start, first = self.recipe.start_time, float(sigmas[0])
        if first > start + 1e-6 and start == 1:
            raise InputError(
                f"the sigmas begin at {first:.4g}: expected times that fall from 1 (noise) to 0 (the picture), so "
                "wire TEASRStepSelector's"
            )
        if first > start + 1e-6:
            raise InputError(
                f"the sigmas begin at {first:.4g}, this MODEL's LoRA starts at {start:.4g}: wire the MODEL into "
                "TEASRStepSelector's `model` too, and its sigmas here"
            )
        for entry in _entries(guider):
            if entry.get(LQ_KEY) and entry.get(START_KEY, "") != self.recipe.start_encoder_sha256:
                raise InputError(wrong_start(self.recipe))


def wrong_start(recipe: Recipe) -> str:
    """The sentence for a TEASRCondition that did not know the MODEL's LoRA."""
    if recipe.uses_start_latent:
        return (
            f"this MODEL's LoRA starts from the latent of a second VAE encoder ({recipe.start_encoder}), which "
            "TEASRCondition did not make: wire this MODEL into TEASRCondition's `model`"
        )
    return (
        "TEASRCondition made the latent for another MODEL, whose LoRA has a second VAE encoder: wire the MODEL that "
        "samples into its `model`, or none"
    )


def towards_lq(
    guider: Any, noise: torch.Tensor, latent: torch.Tensor, time: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another noise and latent (B, C, 1, H, W) that start at the same place: the latent is then that of the LQ image.

    Where a noise mask keeps the picture, ComfyUI leads the straight path from this noise to this latent. The latent of
    a second VAE encoder would be another picture to the decoder. What does not fit is left to the checks of the model.
    """
    lq = next(lq_latents(_entries(guider)), None)
    if lq is None or lq.shape[1:] != latent.shape[1:] or len(lq) not in (1, len(latent)):
        return noise, latent
    normalised = guider.model_patcher.get_model_object("latent_format").process_in
    lq = lq.to(latent).expand_as(latent)
    shift = (1 - time) / time * (normalised(latent) - normalised(lq))  # (B, C, 1, H, W)
    return noise + shift.to(noise), lq


def check_channels(guider: Any) -> None:
    """InputError if the LQ latent is of another VAE than the MODEL's."""
    channels = guider.model_patcher.get_model_object("latent_format").latent_channels
    for lq in lq_latents(_entries(guider)):
        if lq.shape[1] != channels:
            raise InputError(
                f"the LQ latent has {lq.shape[1]} channels, the MODEL works on {channels}: wire the VAE that "
                "belongs to this MODEL into TEASRCondition"
            )


def check_sampling(model_sampling: Any) -> None:
    """InputError if a ModelSampling node gave the MODEL another kind of noise or other times than Qwen-Image's."""
    is_flow = isinstance(model_sampling, comfy.model_sampling.CONST)
    last = float(model_sampling.timestep(torch.ones(1))) if is_flow else 0.0
    if abs(last - 1) > 1e-3:
        found = f"times up to {last:g}" if is_flow else "noise that is not a flow's"
        raise InputError(
            f"a ModelSampling node gives this MODEL {found}: expected a flow whose times go from 1 to 0, so remove the "
            "node (ModelSamplingAuraFlow is the one for Qwen-Image)"
        )


def check_whole(guider: Any) -> None:
    """InputError if a conditioning is for an area alone: the sampler would cut the picture, and not its condition."""
    if any(entry.get("area") is not None for entry in _entries(guider)):
        raise InputError(
            "the conditioning is limited to an area (ConditioningSetArea): expected the whole picture, so remove that "
            "node; TEASRUpscale's `region` restores a part"
        )


def _entries(guider: Any) -> Iterator[dict[str, Any]]:
    """The entries of all conditionings that a guider runs with."""
    return itertools.chain.from_iterable(guider.conds.values())
