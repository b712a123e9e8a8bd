"""The built-in codec behind ComfyUI's VAE interface, so that stock VAE nodes accept it.

The codec itself has no weights. The condition encoder, which repairs an LQ image on top, is used by TEASRCondition
alone (docs/decisions.md#latents-in-comfyui).
"""

from __future__ import annotations

import comfy.model_management
import torch

from ...teasr_core.codec.block_dct import BLOCK, DCT_CHANNELS, coefficients_to_image, image_to_coefficients
from ...teasr_core.codec.dct import DctCodec
from ...teasr_core.errors import InputError
from ...teasr_core.tiling import TileCallback
from ..host.images import between_nodes, intermediate_dtype, to_host


class DctVAE:
    """4x4 block DCT, exact both ways. IMAGE (B, H, W, 3) in [0, 1] <-> raw coefficients (B, 48, 1, H/4, W/4).

    As with ComfyUI's VAEs, encoding crops sides that are no multiple of 4, half of it on each side; TEASRCondition pads
    them instead. The tiled forms equal the plain ones: blocks are independent, so that tiles change nothing.

    codec: the codec of the model that the VAE comes with.
    """

    latent_channels = DCT_CHANNELS
    latent_dim = 3
    output_channels = 3
    downscale_ratio = BLOCK
    upscale_ratio = BLOCK
    vae_dtype = torch.float32

    def __init__(self, codec: DctCodec | None = None) -> None:
        self.codec = codec

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        return between_nodes(self.encode_image(self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)))

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] with sides that are multiples of 4 -> raw coefficients (B, 48, 1, h, w) float32."""
        return image_to_coefficients(image.to(self.output_device, torch.float32))[:, :, None]

    def encode_lq(self, image: torch.Tensor, scale: float, on_tile: TileCallback | None = None) -> torch.Tensor:
        """As `encode_image`, for an LQ image that was enlarged by `scale`: the codec's `encode_lq`, with its encoder on
        the VAE's device.
        """
        assert self.codec is not None
        if self.codec.condition_encoder is not None:
            self.codec.condition_encoder.to(comfy.model_management.vae_device())
        images = image.to(self.output_device, torch.float32).split(1)
        latent = torch.cat([self.codec.encode_lq(one, scale, on_tile) for one in images])  # (B, 48, h, w)
        return (latent * self.codec.std.to(latent) + self.codec.mean.to(latent))[:, :, None]

    def encode_tiled(self, pixel_samples: torch.Tensor, **_tiles: int | None) -> torch.Tensor:
        return self.encode(pixel_samples)

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """(B, 48, T, h, w) or (B, 48, h, w) -> (B * T, 4h, 4w, 3) clamped to [0, 1]."""
        return to_host(self.decode_image(samples_in))

    def decode_image(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, 48, T, h, w) or (B, 48, h, w) -> (B * T, 3, 4h, 4w) clamped to [0, 1]."""
        if latent.ndim not in (4, 5) or latent.shape[1] != DCT_CHANNELS:
            raise InputError(
                f"the latent is {tuple(latent.shape)}, TEASR's built-in VAE decodes {DCT_CHANNELS} channels: wire "
                "the VAE that belongs to the model which made this latent"
            )
        frames = latent.movedim(1, -3).reshape(-1, DCT_CHANNELS, *latent.shape[-2:])  # (B * T, 48, h, w)
        return coefficients_to_image(frames.to(self.output_device, torch.float32)).clamp(0, 1)

    def decode_tiled(self, samples: torch.Tensor, **_tiles: int | None) -> torch.Tensor:
        return self.decode(samples)

    def vae_encode_crop_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H', W', 3): crop the sides to multiples of 4 around the centre, and keep 3 channels."""
        for dim in (1, 2):
            side = pixels.shape[dim]
            pixels = pixels.narrow(dim, side % BLOCK // 2, side // BLOCK * BLOCK)
        return pixels[..., :3]

    @property
    def output_device(self) -> torch.device:
        return comfy.model_management.intermediate_device()

    def vae_output_dtype(self) -> torch.dtype:
        return intermediate_dtype()

    def spacial_compression_encode(self) -> int:
        return BLOCK

    def spacial_compression_decode(self) -> int:
        return BLOCK

    def temporal_compression_decode(self) -> None:
        return None

    def throw_exception_if_invalid(self) -> None:
        """Nothing is raised: there is no file that could be wrong."""

    def is_dynamic(self) -> bool:
        return False
