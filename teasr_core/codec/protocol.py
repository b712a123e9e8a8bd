"""What `restore` needs of an image codec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    pass


class Codec(Protocol):
    """What `restore` needs of an image codec. Images (B, 3, H, W) in [0, 1], latents (B, C, H/f, W/f) normalised."""

    channels: int
    downscale: int

    def encode(self, image: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latent: torch.Tensor) -> torch.Tensor: ...


def encode_condition(codec: Codec, image: torch.Tensor) -> torch.Tensor:
    """What the condition branch sees of an LQ image: (B, 3, H, W) -> (B, C, h, w), by the codec's `encode_condition`.

    A codec without one, such as Qwen-Image's VAE, encodes every image alike.
    """
    encode = getattr(codec, "encode_condition", codec.encode)
    return encode(image)
