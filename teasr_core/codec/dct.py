"""Image <-> latent. The built-in codec has no weights: an orthonormal 4x4 block DCT, exact and invertible.

Raw DCT coefficients are what ComfyUI's VAE interface carries; latents are those coefficients normalised per channel
(mean, std), which in ComfyUI is the LatentFormat's work. `DctCodec` offers both, so that each is normalised once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..tiling import TileCallback
from .condition_encoder import ConditionEncoder
from .protocol import Codec

BLOCK = 4
DCT_CHANNELS = 3 * BLOCK * BLOCK
STRIP = 32  # the codec transforms this many rows of blocks at a time


def dct_matrix() -> torch.Tensor:
    """Orthonormal DCT-II of length 4 (4, 4), float64: row k is cos(pi (2n+1) k / 8), scaled to unit length."""
    n = torch.arange(BLOCK, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * BLOCK))  # (frequency, position)
    return rows / rows.norm(dim=1, keepdim=True)


def image_to_coefficients(image: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 48, H/4, W/4). Channel = colour*16 + row frequency*4 + column frequency.

    The image is scaled to [-1, 1] first; H and W must be multiples of 4.
    """
    batch, colours, height, width = image.shape
    matrix = dct_matrix().to(image)  # (4, 4)
    blocks = (2 * image - 1).reshape(batch, colours, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    spectrum = torch.einsum("ki,bchiwj,lj->bcklhw", matrix, blocks, matrix)  # (B, 3, 4, 4, h, w)
    return spectrum.reshape(batch, colours * BLOCK * BLOCK, height // BLOCK, width // BLOCK)


def coefficients_to_image(coefficients: torch.Tensor) -> torch.Tensor:
    """(B, 48, h, w) -> (B, 3, 4h, 4w) around [0, 1], not clamped. The exact inverse (transpose)."""
    batch, channels, h, w = coefficients.shape
    matrix = dct_matrix().to(coefficients)  # (4, 4)
    spectrum = coefficients.reshape(batch, channels // (BLOCK * BLOCK), BLOCK, BLOCK, h, w)
    blocks = torch.einsum("ki,bcklhw,lj->bchiwj", matrix, spectrum, matrix)  # (B, 3, h, 4, w, 4)
    return (blocks.reshape(batch, -1, h * BLOCK, w * BLOCK) + 1) / 2


class DctCodec(Codec):
    """The 4x4 block DCT with per-channel mean and std (48,), so that latents have about zero mean and unit variance.

    condition_encoder: the LQ encoder, which repairs the latents of low-quality images; None leaves them as they are.
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

    # Both directions work in strips, so that intermediate tensors stay small beside the picture.

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = image.shape
        latent = image.new_empty(batch, DCT_CHANNELS, height // BLOCK, width // BLOCK)
        mean, std = self.mean.to(image), self.std.to(image)
        for y in range(0, latent.shape[2], STRIP):
            rows = image[:, :, y * BLOCK : (y + STRIP) * BLOCK]
            latent[:, :, y : y + STRIP] = (image_to_coefficients(rows) - mean) / std
        return latent

    def encode_lq(self, image: torch.Tensor, on_tile: TileCallback | None = None) -> torch.Tensor:
        """The latent of a low-quality image, repaired by the LQ encoder where there is one; that has no gradient.

        `on_tile(done, count)` is called before each tile of the encoder and may raise.
        """
        latent = self.encode(image)
        return latent if self.condition_encoder is None else self.condition_encoder.in_tiles(latent, on_tile)

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
