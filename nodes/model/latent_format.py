"""The built-in model's latent in ComfyUI: raw DCT coefficients on the wires, normalised ones inside the model.

See docs/decisions.md#latents-in-comfyui.
"""

from __future__ import annotations

import comfy.latent_formats
import torch

from ...teasr_core.codec.block_dct import BLOCK, DCT_CHANNELS
from ...teasr_core.codec.dct import DctCodec


class DctLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents have 48 channels at a quarter of the picture's size, and a frame axis: (B, 48, 1, H/4, W/4)."""

    latent_channels = DCT_CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = BLOCK

    def __init__(self, codec: DctCodec) -> None:
        self.mean = codec.mean.flatten()  # (48,)
        self.std = codec.std.flatten()  # (48,)
        # Previews show the mean of each block. In [-1, 1] it is the DC coefficient / 4, as the 4x4 DCT is orthonormal.
        block = BLOCK * BLOCK
        factors, bias = torch.zeros(DCT_CHANNELS, 3), torch.zeros(3)
        for colour in range(3):
            factors[colour * block, colour] = self.std[colour * block] / BLOCK
            bias[colour] = self.mean[colour * block] / BLOCK
        self.latent_rgb_factors = factors.tolist()
        self.latent_rgb_factors_bias = bias.tolist()

    def process_in(self, latent: torch.Tensor) -> torch.Tensor:
        mean, std = self._like(latent)
        return (latent - mean) / std

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        mean, std = self._like(latent)
        return latent * std + mean

    def _like(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1, *[1] * (latent.ndim - 2))
        return self.mean.to(latent).reshape(shape), self.std.to(latent).reshape(shape)
