"""The Qwen-Image VAE as a `Codec`: 16 channels at 1/8 of the size; an image is one frame of this video VAE.

Images larger than one tile are encoded and decoded in the overlapping tiles of `tiling.py`: all tiles have one size and
their edges do not enter the blend. The `enable_tiling` of diffusers would end in narrow tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..tiling import QWEN_OVERLAP_PX, QWEN_TILE_PX, TilePlan, convert_in_tiles, plan_codec_tiles
from .protocol import Codec

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

DOWNSCALE = 8
# Statistics of the latent of Wan 2.1 and Qwen-Image, as published with both; single files do not hold them.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class QwenVaeCodec(Codec):
    """A `Codec` around diffusers' `AutoencoderKLQwenImage`, on the VAE's device and in its dtype.

    `encode` returns the posterior's mode, normalised by mean and std. Both directions are differentiable: `decode` does
    not clamp, as the `decode` of diffusers does, because that would cut gradients off.

    Args:
        vae: any size; its config carries latents_mean and latents_std.
        tile_px, overlap_px: multiples of 16 and 8; images with a longer side than tile_px are tiled.
        border_px: above 0, tiles are weighted by the distance to their border (`tiling.TilePlan`).
        start_encoder: a second encoder, for `encode_start`.
    """

    def __init__(
        self,
        vae: AutoencoderKLQwenImage,
        tile_px: int = QWEN_TILE_PX,
        overlap_px: int = QWEN_OVERLAP_PX,
        border_px: int = 0,
        start_encoder: nn.Module | None = None,
    ) -> None:
        self.vae = vae
        self.channels: int = vae.config["z_dim"]
        self.downscale = DOWNSCALE
        assert 2 ** len(vae.config["temperal_downsample"]) == DOWNSCALE, "a VAE of another factor"
        self.tile, self.overlap = tile_px // self.downscale, overlap_px // self.downscale
        self.border = border_px // self.downscale
        self.start_encoder = start_encoder
        self.mean = _statistics(vae.config["latents_mean"])  # (1, C, 1, 1)
        self.std = _statistics(vae.config["latents_std"])  # (1, C, 1, 1)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of 8 -> normalised latent (B, C, H/8, W/8), float32."""
        return self._encode(image, self.vae.encoder)

    def encode_start(self, image: torch.Tensor) -> torch.Tensor | None:
        """As `encode`, through the second encoder; None where there is none."""
        return None if self.start_encoder is None else self._encode(image, self.start_encoder)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Normalised latent (B, C, h, w) -> image (B, 3, 8h, 8w) around [0, 1], float32, not clamped."""
        plan = self._plan(latent.shape[2], latent.shape[3])
        latent = latent.to(self._device, torch.float32)
        raw = (latent * self.std.to(latent) + self.mean.to(latent)).to(self._dtype)  # (B, C, h, w)
        return (convert_in_tiles(self._decode_tile, raw, plan, size_in=1, size_out=self.downscale) + 1) / 2

    def _plan(self, height: int, width: int) -> TilePlan:
        return plan_codec_tiles(height, width, self.tile, self.overlap, border=self.border)

    def _encode(self, image: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
        f = self.downscale
        plan = self._plan(image.shape[2] // f, image.shape[3] // f)
        pixels = 2 * image.to(self._device, self._dtype) - 1  # (B, 3, H, W)
        convert = partial(self._encode_tile, encoder)
        latent = convert_in_tiles(convert, pixels, plan, size_in=f, size_out=1)  # (B, C, h, w)
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    # Without their frame caches encoder and decoder treat a single frame as they do the first of a video.

    def _encode_tile(self, encoder: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        moments = self.vae.quant_conv(encoder(pixels[:, :, None]))[:, :, 0]  # (B, 2 C, h, w)
        return moments.chunk(2, dim=1)[0].float()  # the mode of a Gaussian is its mean

    def _decode_tile(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(latent[:, :, None]))[:, :, 0].float()  # (B, 3, 8h, 8w)

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype


def _statistics(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32).reshape(1, -1, 1, 1)
