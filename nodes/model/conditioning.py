"""CONDITIONING as TEASR uses it holds a file's prompt embedding and, beside it, the latent of the LQ image.

See docs/decisions.md#conditioning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import node_helpers
import torch

from ...teasr_core.errors import InputError

Conditioning = list[list[Any]]
LQ_KEY = "reference_latents"
# The hash of the second VAE encoder that made the LATENT beside this conditioning, where a LoRA has one.
START_KEY = "teasr_start_encoder"


def prompt_conditioning(prompt_embeds: torch.Tensor) -> Conditioning:
    """(T, text_width) -> CONDITIONING in float32, so that no value is rounded twice."""
    return [[prompt_embeds.float()[None], {}]]


def with_lq(conditioning: Conditioning, lq: torch.Tensor, start_encoder_sha256: str = "") -> Conditioning:
    """A copy that carries the LQ latent (B, C, 1, h, w). InputError if it holds a reference latent already.

    start_encoder_sha256: the hash of the second encoder that made the latent to start from, if there is one.
    """
    if any(LQ_KEY in entry[1] for entry in conditioning):
        raise InputError(
            "the conditioning already holds reference latents: TEASR takes the LQ image alone, so remove the other "
            "TEASRCondition, ReferenceLatent or TextEncodeQwenImageEdit node from this wire"
        )
    values: dict[str, Any] = {LQ_KEY: [lq]}
    if start_encoder_sha256:
        values[START_KEY] = start_encoder_sha256
    return node_helpers.conditioning_set_values(conditioning, values)


def lq_latents(values: Iterable[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
    """The LQ latents (B, C, 1, h, w) among the values of a conditioning's entries, a node's or a running guider's."""
    return (latent for entry in values for latent in entry.get(LQ_KEY, []))


def lq_batch(conditioning: Conditioning) -> int:
    """How many LQ images the conditioning carries. It is 1 if there is none: the model then says what is missing."""
    return max((len(latent) for latent in lq_latents(entry[1] for entry in conditioning)), default=1)


def lq_of(conditioning: Conditioning) -> torch.Tensor | None:
    """The LQ latent (B, C, 1, h, w) that `with_lq` attached, or None."""
    return next(lq_latents(entry[1] for entry in conditioning), None)


def conditioning_of_image(conditioning: Conditioning, k: int) -> Conditioning:
    """The conditioning of image k of a batch: its own LQ latent, and its own prompt if each image has one."""

    def pick(value: torch.Tensor) -> torch.Tensor:
        return value[k : k + 1] if value.shape[0] > 1 else value

    entries = []
    for embeds, values in conditioning:
        values = values.copy()
        if LQ_KEY in values:
            values[LQ_KEY] = [pick(latent) for latent in values[LQ_KEY]]
        entries.append([pick(embeds), values])
    return entries
