"""The built-in codec: a 4x4 block DCT, normalised per channel.

Raw DCT coefficients are what ComfyUI's VAE interface carries; latents are those coefficients normalised per channel
(mean, std), which in ComfyUI is the LatentFormat's work, so that each is normalised once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..image.target_size import TRAINED_SCALE
from ..tiling import TileCallback
from .block_dct import BLOCK, DCT_CHANNELS, coefficients_to_image, image_to_coefficients
from .condition_encoder.encoder import ConditionEncoder
from .protocol import Codec

STRIP = 32  # the codec transforms this many rows of blocks at a time


class DctCodec(Codec):
    """The 4x4 block DCT with per-channel mean and std (48,), so that latents have about zero mean and unit variance.

    condition_encoder: the network that repairs the latents of low-quality images; None leaves them as they are.
    """

    channels = DCT_CHANNELS
    downscale = BLOCK

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], condition_encoder: ConditionEncoder | None = None
    ) -> None:
        self.condition_encoder = condition_encoder
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1)
        assert self.mean.shape == self.std.shape == (1, DCT_CHANNELS, 1, 1)
        if condition_encoder is not None:
            condition_encoder.set_statistics(self.mean, self.std)

    # Both directions work in strips, so that intermediate tensors stay small beside the picture.

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = image.shape
        latent = image.new_empty(batch, DCT_CHANNELS, height // BLOCK, width // BLOCK)
        mean, std = self.mean.to(image), self.std.to(image)
        for y in range(0, latent.shape[2], STRIP):
            rows = image[:, :, y * BLOCK : (y + STRIP) * BLOCK]
            latent[:, :, y : y + STRIP] = (image_to_coefficients(rows) - mean) / std
        return latent

    def encode_lq(
        self, image: torch.Tensor, scale: float = TRAINED_SCALE, on_tile: TileCallback | None = None
    ) -> torch.Tensor:
        """The latent of a low-quality image, repaired by the condition encoder if there is one; no gradient.

        scale: how many times larger the image is than the one it was resized from, by which, and by each image of a
            batch, the encoder chooses its grid. 1 leaves the choice to the images.
        on_tile: `on_tile(done, count)` is called before each tile of the encoder and may raise.
        """
        latent, encoder = self.encode(image), self.condition_encoder
        if encoder is None:
            return latent
        grids = [encoder.finer(one, scale) for one in image.split(1)]
        if len(set(grids)) == 1:
            return encoder.in_tiles(latent, grids[0], on_tile)
        return torch.cat([encoder.in_tiles(z, finer, on_tile) for z, finer in zip(latent.split(1), grids, strict=True)])

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        batch, _, h, w = latent.shape
        image = latent.new_empty(batch, 3, h * BLOCK, w * BLOCK)
        mean, std = self.mean.to(latent), self.std.to(latent)
        for y in range(0, h, STRIP):
            rows = latent[:, :, y : y + STRIP]
            image[:, :, y * BLOCK : (y + STRIP) * BLOCK] = coefficients_to_image(rows * std + mean)
        return image

    @property
    def pixel_weights(self) -> torch.Tensor:
        """(1, 48, 1, 1): std_c**2 / mean(std**2)."""
        return self.std**2 / (self.std**2).mean()
