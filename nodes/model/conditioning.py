"""CONDITIONING as TEASR uses it: the prompt embedding of a file, and the LQ latent beside it
(docs/decisions.md#conditioning)."""

from __future__ import annotations

from typing import Any

import node_helpers
import torch

from ...teasr_core.errors import InputError

Conditioning = list[list[Any]]
LQ_KEY = "reference_latents"


def prompt_conditioning(prompt_embeds: torch.Tensor) -> Conditioning:
    """(T, text_width) -> CONDITIONING; float32, so that no dtype is rounded twice."""
    return [[prompt_embeds.float()[None], {}]]


def with_lq(conditioning: Conditioning, lq: torch.Tensor) -> Conditioning:
    """A copy that carries the LQ latent (B, C, 1, h, w). InputError when there is a reference latent already."""
    if any(LQ_KEY in entry[1] for entry in conditioning):
        raise InputError(
            "the conditioning already holds reference latents: TEASR takes the LQ image alone, so remove the other "
            "TEASRCondition, ReferenceLatent or TextEncodeQwenImageEdit node from this wire"
        )
    return node_helpers.conditioning_set_values(conditioning, {LQ_KEY: [lq]})


def lq_batch(conditioning: Conditioning) -> int:
    """How many LQ images the conditioning carries (1 when it has none: the model itself then says what is missing)."""
    return max((latent.shape[0] for entry in conditioning for latent in entry[1].get(LQ_KEY, [])), default=1)


def of_image(conditioning: Conditioning, k: int) -> Conditioning:
    """The conditioning of image k of a batch: its LQ latent, and its prompt where there is one per image."""

    def pick(value: torch.Tensor) -> torch.Tensor:
        return value[k : k + 1] if value.shape[0] > 1 else value

    entries = []
    for embeds, values in conditioning:
        values = values.copy()
        if LQ_KEY in values:
            values[LQ_KEY] = [pick(latent) for latent in values[LQ_KEY]]
        entries.append([pick(embeds), values])
    return entries


def check_channels(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: InputError before anything is loaded when the LQ latent is another VAE's."""
    guider = executor.class_obj
    channels = guider.model_patcher.get_model_object("latent_format").latent_channels
    for entries in guider.conds.values():
        for latent in (latent for entry in entries for latent in entry.get(LQ_KEY, [])):
            if latent.shape[1] != channels:
                raise InputError(
                    f"the LQ latent has {latent.shape[1]} channels, the MODEL works on {channels}: wire the VAE that "
                    "belongs to this MODEL into TEASRCondition"
                )
    return executor(*args, **kwargs)
