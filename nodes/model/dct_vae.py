"""The built-in codec behind ComfyUI's VAE interface: stock VAE nodes accept it (docs/decisions.md#latents-in-comfyui).

The codec itself has no weights. What an LQ image goes through on top, the condition encoder, is TEASRCondition's alone.
"""

from __future__ import annotations

import comfy.model_management
import torch

from ...teasr_core.codec.dct import BLOCK, DCT_CHANNELS, DctCodec, coefficients_to_image, image_to_coefficients
from ...teasr_core.errors import InputError


class DctVAE:
    """4x4 block DCT, exact both ways. IMAGE (B, H, W, 3) in [0, 1] <-> raw coefficients (B, 48, 1, H/4, W/4).

    As with the host's VAEs, sides that are no multiple of 4 lose their outer pixels, half on each side, on encoding;
    TEASRCondition pads instead. The tiled forms are the plain ones: blocks are independent, so tiles change nothing.

    codec: of the model the VAE comes with; its condition encoder serves `encode_condition`.
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
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1).float()  # (B, 3, H, W)
        return image_to_coefficients(pixels.to(self.output_device))[:, :, None]  # (B, 48, 1, h, w)

    def encode_condition(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """As `encode`, for an LQ image: through the model's condition encoder where it has one, on the VAE's device."""
        coefficients = self.encode(pixel_samples)  # (B, 48, 1, h, w)
        if not self.has_condition_encoder:
            return coefficients
        assert self.codec is not None
        encoder = self.codec.condition_encoder.to(comfy.model_management.vae_device())  # type: ignore[union-attr]
        mean, std = self.codec.mean.to(coefficients), self.codec.std.to(coefficients)  # (1, 48, 1, 1)
        with torch.no_grad():
            latent = encoder(((coefficients[:, :, 0] - mean) / std).to(encoder.head.weight)).to(coefficients)
        return (latent * std + mean)[:, :, None]

    @property
    def has_condition_encoder(self) -> bool:
        return self.codec is not None and self.codec.condition_encoder is not None

    def encode_tiled(self, pixel_samples: torch.Tensor, **_tiles: int | None) -> torch.Tensor:
        return self.encode(pixel_samples)

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """(B, 48, T, h, w) or (B, 48, h, w) -> (B * T, 4h, 4w, 3) clamped to [0, 1]."""
        if samples_in.ndim not in (4, 5) or samples_in.shape[1] != DCT_CHANNELS:
            raise InputError(
                f"the latent is {tuple(samples_in.shape)}, TEASR's built-in VAE decodes {DCT_CHANNELS} channels: wire "
                "the VAE that belongs to the model which made this latent"
            )
        frames = samples_in.movedim(1, -3).reshape(-1, DCT_CHANNELS, *samples_in.shape[-2:])  # (B * T, 48, h, w)
        image = coefficients_to_image(frames.to(self.output_device, torch.float32)).clamp(0, 1)
        return image.movedim(1, -1).contiguous()

    def decode_tiled(self, samples: torch.Tensor, **_tiles: int | None) -> torch.Tensor:
        return self.decode(samples)

    def vae_encode_crop_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H', W', 3): sides cut to multiples of 4 around the centre, channels beyond 3 dropped."""
        for dim in (1, 2):
            side = pixels.shape[dim]
            pixels = pixels.narrow(dim, side % BLOCK // 2, side // BLOCK * BLOCK)
        return pixels[..., :3]

    @property
    def output_device(self) -> torch.device:
        return comfy.model_management.intermediate_device()

    def spacial_compression_encode(self) -> int:
        return BLOCK

    def spacial_compression_decode(self) -> int:
        return BLOCK

    def temporal_compression_decode(self) -> None:
        return None

    def throw_exception_if_invalid(self) -> None:
        """Always valid: nothing was loaded."""

    def is_dynamic(self) -> bool:
        return False
