"""Pictures through a VAE of ComfyUI's, in tiles if they are large (R9), or through the built-in codec.

ComfyUI's own estimate for decoding with the Qwen VAE is 17.2 GiB at 2048 x 2048 and 68.8 GiB at 4096 x 4096. A picture
above 1024 px is cut as the command line cuts it (`plan_codec_tiles`), however much memory is free, so that it comes out
the same in every run. If the estimate for such a tile does not fit either, the tiles are halved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ...teasr_core.errors import InputError, OutputError
from ...teasr_core.model.recipe import Recipe
from ...teasr_core.tiling import QWEN_OVERLAP_PX, QWEN_TILE_PX, TilePlan, convert_in_tiles, plan_codec_tiles
from ..host.images import from_host
from ..host.memory import (
    available_bytes,
    has_own_memory,
    is_out_of_memory,
    largest_that_fits,
    release,
    too_large,
)
from ..host.sockets import check_vae
from ..model.dct_vae import DctVAE
from .progress import tile_progress

# The sides of tiles that are tried, all multiples of what a VAE shrinks by. Tiles overlap by a quarter, 64 to 128 px.
SIDES_PX = (QWEN_TILE_PX, 512, 256, 128)
LEAST_OVERLAP_PX = 64
# On a device that shares the machine's memory, 1024 px in fp32 would take 9.2 GiB by the estimate. A process that takes
# more than there is gets no error that it could answer: the system ends it.
SHARED_SIDES_PX = SIDES_PX[1:]

Convert = Callable[[torch.Tensor], torch.Tensor]


def picture_vae(vae: Any, recipe: Recipe | None = None) -> HostVae | BuiltinVae:
    """The VAE on a wire, as the pack uses it: images and latents have the core's layout (B, C, H, W).

    recipe: that of the MODEL, which may have tiles of its own.
    """
    return BuiltinVae(vae) if isinstance(vae, DctVAE) else HostVae(check_vae(vae), recipe)


class BuiltinVae:
    """The built-in codec. Its blocks of 4 x 4 px stand alone and take little memory, so that no tiles are needed."""

    tile_px = 0

    def __init__(self, vae: DctVAE) -> None:
        self.vae = vae

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, 1, h, w) float32."""
        return self.vae.encode_image(image)

    def encode_lq(self, image: torch.Tensor, _latent: torch.Tensor, scale: float) -> torch.Tensor:
        """As `encode`, for an LQ image that was enlarged by `scale`: through the condition encoder."""
        return self.vae.encode_lq(image, scale, tile_progress())

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, h, w) or (B, C, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        return self.vae.decode_image(latent)


class HostVae:
    """A VAE of ComfyUI's, which gets one image at a time because a video VAE takes a batch for frames.

    tile_px: the longest side of the tiles of the last picture, or 0 if it was not cut.
    If memory runs out for a tile, the picture starts again in smaller tiles, and the next pictures use them too.
    InputError if memory runs out for the smallest.
    """

    def __init__(self, vae: Any, recipe: Recipe | None = None) -> None:
        self.vae = vae
        self.recipe = recipe or Recipe()
        self.tile_px = 0
        device = getattr(vae, "device", None)
        self.free = available_bytes(device)
        self.sides_px = SIDES_PX if device is None or has_own_memory(device) else SHARED_SIDES_PX
        own = self.recipe.tile_px
        if own:
            self.sides_px = (own, *(side for side in self.sides_px if side < own))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, 1, h, w) float32. OutputError if the VAE makes NaN or infinity of it."""
        f = self.vae.spacial_compression_encode()
        height, width = (side // f for side in image.shape[-2:])

        def bytes_of(plan: TilePlan) -> float:
            return self._estimate("memory_used_encode", 3, f * plan.height, f * plan.width)

        latent = self._convert(self._encode_tile, image, lambda: self._plan(height, width, f, bytes_of), f, 1)
        if not bool(torch.isfinite(latent).all()):
            raise OutputError(
                "the VAE made NaN or infinity of the picture: the usual cause is a VAE in fp16, so start ComfyUI with "
                "--bf16-vae or --fp32-vae"
            )
        return latent[:, :, None]  # (B, C, 1, h, w)

    def encode_lq(self, _image: torch.Tensor, latent: torch.Tensor, _scale: float) -> torch.Tensor:
        """The latent of an LQ image is its `encode`d latent, which the caller has already."""
        return latent

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, h, w) or (B, C, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        f = self.vae.spacial_compression_decode()
        frames = latent.movedim(1, -3).flatten(0, -4)  # (B, C, h, w)
        channels, height, width = frames.shape[1:]

        def bytes_of(plan: TilePlan) -> float:
            return self._estimate("memory_used_decode", channels, plan.height, plan.width)

        return self._convert(self._decode_tile, frames, lambda: self._plan(height, width, f, bytes_of), 1, f)

    def _convert(
        self,
        convert: Convert,
        sources: torch.Tensor,
        plan_now: Callable[[], TilePlan],
        size_in: int,
        size_out: int,
    ) -> torch.Tensor:
        """Convert pictures (B, C, H, W) in the tiles of `plan_now`, which is called again after a failure."""
        f = size_in * size_out
        plan = plan_now()
        results = []
        for source in sources.split(1):
            while (result := _try(convert, source, plan, size_in, size_out)) is None:
                release()
                self._step_down(f * max(plan.height, plan.width))
                plan = plan_now()
            results.append(result)
        self.tile_px = f * max(plan.height, plan.width) if plan.count > 1 else 0
        return torch.cat(results)

    def _plan(self, height: int, width: int, f: int, needed: Callable[[TilePlan], float]) -> TilePlan:
        def plan(side_px: int) -> TilePlan:
            overlap_px = max(LEAST_OVERLAP_PX, min(QWEN_OVERLAP_PX, side_px // 4))
            if side_px == self.recipe.tile_px:
                overlap_px = self.recipe.overlap_px
            tile, overlap = side_px // f, overlap_px // f
            return plan_codec_tiles(height, width, tile, overlap, border=self.recipe.border(tile, overlap))

        sides = self.sides_px
        side = largest_that_fits(sides, lambda side_px: needed(plan(side_px)), self.free)
        if side < sides[0] and self.free < float("inf"):
            short = too_large(sides[0], needed(plan(sides[0])), self.free)
            logging.info(f"TEASR: the VAE works in {plan(side).count} tiles of {side} px: {short}")
        return plan(side)

    def _step_down(self, failed_px: int) -> None:
        smaller = tuple(side for side in self.sides_px if side < failed_px)
        if not smaller:
            raise InputError(
                f"memory ran out in the VAE, even for {failed_px} pixels at once: close other programs, or start "
                "ComfyUI with --cpu-vae"
            )
        logging.warning(f"TEASR: memory ran out in the VAE, trying tiles of {smaller[0]} px")
        self.sides_px = smaller

    def _estimate(self, name: str, channels: int, height: int, width: int) -> float:
        """The VAE's own estimate in bytes, or 0 if it has none."""
        estimate = getattr(self.vae, name, None)
        if estimate is None:
            return 0.0
        return estimate((1, channels, *self._frame, height, width), self.vae.vae_dtype)

    @property
    def _frame(self) -> tuple[int, ...]:
        """The dimension of frames: one frame for a video VAE, no such dimension for another."""
        return () if getattr(self.vae, "latent_dim", 3) == 2 else (1,)

    # ComfyUI's tiled methods are called with one tile of ours as their only tile. Unlike the plain methods they raise
    # out-of-memory errors, so that the tiles get smaller by the rules above. They are not used for a VAE without
    # frames, for which they make three passes, nor for one that has tiles of its own.

    @property
    def _takes_tiles(self) -> bool:
        return (
            bool(self._frame) and hasattr(self.vae, "decode_tiled") and not getattr(self.vae, "handles_tiling", False)
        )

    def _encode_tile(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) -> (1, C, h, w)."""
        height, width = image.shape[-2:]
        pixels = image.movedim(1, -1).contiguous()  # (1, H, W, 3)
        if self._takes_tiles:
            side = max(height, width)  # with frames, ComfyUI takes tile_x for the height
            latent = self.vae.encode_tiled(pixels, tile_x=side, tile_y=side, overlap=0)
        else:
            latent = self.vae.encode(pixels)
        f = self.vae.spacial_compression_encode()
        expected = (1, height // f, width // f)
        found = tuple(latent.shape[2:]) if latent.ndim == 5 else (1, *latent.shape[2:])
        if found != expected:
            raise InputError(
                f"the VAE made a latent of {found}, expected {expected}: wire TEASRLoadBuiltin's VAE or Qwen-Image's"
            )
        return latent.float().reshape(*latent.shape[:2], *expected[1:])

    def _decode_tile(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, C, h, w) -> (1, 3, H, W)."""
        samples = latent[:, :, None] if self._frame else latent
        if self._takes_tiles:
            side = max(latent.shape[-2:])
            pixels = self.vae.decode_tiled(samples, tile_x=side, tile_y=side, overlap=0)
        else:
            pixels = self.vae.decode(samples)
        return from_host(pixels.reshape(-1, *pixels.shape[-3:]), "the VAE's picture")


def _try(convert: Convert, source: torch.Tensor, plan: TilePlan, size_in: int, size_out: int) -> torch.Tensor | None:
    """None if memory ran out. The failed call's tensors are gone when this returns."""
    try:
        return convert_in_tiles(convert, source, plan, size_in, size_out, tile_progress())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
