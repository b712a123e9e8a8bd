"""The built-in model's latent in ComfyUI: raw DCT coefficients on the wires, normalised ones inside the model.

See docs/decisions.md#latents-in-comfyui.
"""

from __future__ import annotations

import comfy.latent_formats
import torch
from comfy.cli_args import args

from ...teasr_core.codec.block_dct import BLOCK, DCT_CHANNELS, coefficients_to_image
from ...teasr_core.codec.dct import DctCodec


class DctLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents have 48 channels at a quarter of the picture's size, and a frame axis: (B, 48, 1, H/4, W/4)."""

    latent_channels = DCT_CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = BLOCK

    def __init__(self, codec: DctCodec) -> None:
        self.mean = codec.mean.flatten()  # (48,)
        self.std = codec.std.flatten()  # (48,)
        # Previews are made of `latent_rgb_factors_reshape`, which is RGB already.
        self.latent_rgb_factors = torch.eye(3).tolist()

    def latent_rgb_factors_reshape(self, latent: torch.Tensor) -> torch.Tensor:
        """The first picture of a normalised latent, (1, 3, H, W) around [-1, 1], as ComfyUI's previewer asks for it.

        It is the decoded picture itself, or means of its pixels where ComfyUI would make the preview smaller anyway
        (its option --preview-size).
        """
        raw = self.process_out(latent[:1])
        coefficients = raw[:, :, 0] if raw.ndim == 5 else raw
        longest = max(coefficients.shape[-2:])
        side = next(side for side in (1, 2, BLOCK) if side * longest >= args.preview_size or side == BLOCK)
        return 2 * coefficients_to_image(coefficients, side) - 1

    def process_in(self, latent: torch.Tensor) -> torch.Tensor:
        mean, std = self._like(latent)
        return (latent - mean) / std

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        mean, std = self._like(latent)
        return latent * std + mean

    def _like(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1, *[1] * (latent.ndim - 2))
        return self.mean.to(latent).reshape(shape), self.std.to(latent).reshape(shape)
