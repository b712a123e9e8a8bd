"""Decoding with a gradient through diffusers' `AutoencoderKLQwenImage`, one checkpoint per up-block.

A single frame needs none of the decoder's caches between frames, so that the decoder is called without them. The result
is not clamped, which would cut off the gradient of the pixel loss (docs/decisions.md#unclamped-decode).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from teasr_core.model.branch_lora import forward_overrides


def decode_checkpointed(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """(B, 16, h, w) raw latents -> (B, 3, 8h, 8w), about [-1, 1], unclamped; in the VAE's dtype.

    Where the pixels lie within [-1, 1] it equals `vae.decode` bit for bit. In the backward the activations
    of one up-block are alive at a time, and every block runs twice.
    """
    decoder = vae.decoder
    overrides = [(block, _checkpointed(block)) for block in (decoder.mid_block, *decoder.up_blocks)]
    with forward_overrides(overrides):
        frames = vae.post_quant_conv(z.to(vae.dtype).unsqueeze(2))  # (B, 16, 1, h, w)
        return decoder(frames).squeeze(2)  # (B, 3, 8h, 8w)


def _checkpointed(block: nn.Module) -> Callable[..., torch.Tensor]:
    forward = block.forward  # the class's own: the recompute runs after the override has gone

    def checkpointed_forward(x: torch.Tensor, feat_cache: object = None, _index: object = None) -> torch.Tensor:
        assert feat_cache is None, "single frames are decoded without a cache"
        if not torch.is_grad_enabled():
            return forward(x)
        result = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, torch.Tensor)
        return result  # (B, C, 1, H, W)

    return checkpointed_forward
