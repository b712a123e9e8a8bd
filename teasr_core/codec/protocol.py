"""The contract of an image codec."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ..image.target_size import TRAINED_SCALE


class Codec(ABC):
    """Turns images (B, 3, H, W) in [0, 1] into normalised latents (B, C, H/downscale, W/downscale), and back.

    A codec subclasses it, so that it gets `encode_lq` and `pixel_weights` where it has none of its own.
    """

    channels: int
    downscale: int

    @abstractmethod
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode an image."""
        ...

    @abstractmethod
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode a latent; the image is not clamped."""
        ...

    def encode_lq(self, image: torch.Tensor, scale: float = TRAINED_SCALE) -> torch.Tensor:
        """Encode a low-quality image for the condition branch. Unless a codec says otherwise, as any other image.

        scale: how many times larger the image is than the low-quality one that it was resized from.
        """
        return self.encode(image)

    def encode_start(self, image: torch.Tensor) -> torch.Tensor | None:
        """Encode an LQ image for the start of the noise branch. None where sampling starts from noise alone."""
        return None

    @property
    def pixel_weights(self) -> torch.Tensor:
        """(1, C, 1, 1): squared errors of a latent times this are squared errors in pixels
        (docs/decisions.md#loss-space). Only an orthogonal codec has them.
        """
        raise NotImplementedError(f"{type(self).__name__} is not orthogonal: its latents have no weights in pixels")
