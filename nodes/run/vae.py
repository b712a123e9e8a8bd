"""Pictures through the host's VAE, in tiles where they are large (R9).

The host's own estimate of the Qwen VAE's decoding is 17.2 GiB at 2048 x 2048 and 68.8 GiB at 4096 x 4096. Above
1024 px a picture is cut as the command line cuts it (`codec_tiles`), however much is free, so that it comes out the
same in every run. Where the estimate of such a tile does not fit either, tiles are halved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ...teasr_core.codec import lq_encoder
from ...teasr_core.codec.qwen_vae import OVERLAP_PX, TILE_PX
from ...teasr_core.errors import InputError
from ...teasr_core.tiling import TilePlan, convert_in_tiles, plan_codec_tiles
from ..host.images import from_host, to_host
from ..host.memory import has_own_memory, is_out_of_memory, largest_that_fits, release, room, too_large
from ..model.dct_vae import DctVAE

# Sides of tiles that are tried, all multiples of what a VAE shrinks by; they overlap by a quarter, 64 to 128 px.
SIDES_PX = (TILE_PX, 512, 256, 128)
LEAST_OVERLAP_PX = 64
# Where memory is the machine's: fp32 at 1024 px is 9.2 GiB by the estimate, and a process that takes more than there
# is gets no error to answer, it is ended.
SHARED_SIDES_PX = SIDES_PX[1:]

Convert = Callable[[torch.Tensor], torch.Tensor]


class HostVae:
    """encode and decode of a VAE, one image at a time: a video VAE takes a batch for frames.

    tile_px: longest side of the tiles of the last picture, 0 where it came whole.
    A tile that memory does not suffice for starts the picture again in smaller ones, and the next pictures with them.
    InputError where not even the smallest fits.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.tile_px = 0
        device = getattr(vae, "device", None)
        self.free = room(device)
        self.sides_px = SIDES_PX if device is None or has_own_memory(device) else SHARED_SIDES_PX

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """LQ images (B, 3, H, W) -> (B, C, 1, h, w) float32."""
        f = self.vae.spacial_compression_encode()
        height, width = (side // f for side in image.shape[-2:])

        def plan() -> TilePlan:
            if isinstance(self.vae, DctVAE):
                return self._builtin_plan(height, width, f)
            return self._plan(
                height, width, f, lambda plan: self._estimate("memory_used_encode", 3, f * plan.height, f * plan.width)
            )

        return self._convert(self._encode_tile, image, plan, f, 1)[:, :, None]  # (B, C, 1, h, w)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, h, w) or (B, C, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        f = self.vae.spacial_compression_decode()
        frames = latent.movedim(1, -3).flatten(0, -4)  # (B, C, h, w)
        channels, height, width = frames.shape[1:]

        def plan() -> TilePlan:
            if isinstance(self.vae, DctVAE):  # every block of 4 x 4 stands alone, and little memory is needed
                return TilePlan(height, width, (0,), (0,))
            return self._plan(
                height, width, f, lambda plan: self._estimate("memory_used_decode", channels, plan.height, plan.width)
            )

        return self._convert(self._decode_tile, frames, plan, 1, f)  # (B, 3, H, W)

    def _convert(
        self,
        convert: Convert,
        sources: torch.Tensor,
        plan_now: Callable[[], TilePlan],
        size_in: int,
        size_out: int,
    ) -> torch.Tensor:
        """Pictures (B, C, H, W) in the tiles of `plan_now`, which is asked for smaller ones after a failure."""
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
            overlap_px = max(LEAST_OVERLAP_PX, min(OVERLAP_PX, side_px // 4))
            return plan_codec_tiles(height, width, side_px // f, overlap_px // f)

        sides = self.sides_px
        side = largest_that_fits(sides, lambda side_px: needed(plan(side_px)), self.free)
        if side < sides[0] and self.free < float("inf"):
            short = too_large(sides[0], needed(plan(sides[0])), self.free)
            logging.info(f"TEASR: the VAE works in {plan(side).count} tiles of {side} px: {short}")
        return plan(side)

    def _builtin_plan(self, height: int, width: int, f: int) -> TilePlan:
        """The tiles of the built-in model's condition encoder, those of the command line unless memory ran out."""
        if not self.vae.has_condition_encoder:
            return TilePlan(height, width, (0,), (0,))
        side = min(lq_encoder.TILE, self.sides_px[0] // f)
        return plan_codec_tiles(height, width, side, min(lq_encoder.OVERLAP, side // 4))

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
        """The VAE's own, in bytes, 0 of one that has none."""
        estimate = getattr(self.vae, name, None)
        if estimate is None:
            return 0.0
        return estimate((1, channels, *self._frame, height, width), self.vae.vae_dtype)

    @property
    def _frame(self) -> tuple[int, ...]:
        """The one frame among the dimensions of a video VAE."""
        return () if getattr(self.vae, "latent_dim", 3) == 2 else (1,)

    # The tiled forms take one of our tiles whole; unlike the plain ones they hand out-of-memory on, so that tiles get
    # smaller by these rules. Of a VAE without frames they make three passes, and some VAEs have tiles of their own.

    @property
    def _takes_tiles(self) -> bool:
        return (
            bool(self._frame) and hasattr(self.vae, "decode_tiled") and not getattr(self.vae, "handles_tiling", False)
        )

    def _encode_tile(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) -> (1, C, h, w)."""
        height, width = image.shape[-2:]
        pixels = to_host(image)  # (1, H, W, 3)
        if isinstance(self.vae, DctVAE):
            latent = self.vae.encode_condition(pixels)
        elif self._takes_tiles:
            side = max(height, width)  # the host takes tile_x for the height where there are frames
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
    """None when memory ran out; the failed call's tensors are gone when this returns."""
    bar = comfy.utils.ProgressBar(plan.count) if plan.count > 1 else None

    def on_tile(done: int, _count: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if bar is not None:
            bar.update_absolute(done)

    try:
        return convert_in_tiles(convert, source, plan, size_in, size_out, on_tile)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
