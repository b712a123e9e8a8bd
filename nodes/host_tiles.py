"""Tiles inside the host's sampler: which ones, and how much memory one of them needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..teasr_core.errors import InputError
from ..teasr_core.restore import AUTO_OVERLAP_PX, AUTO_TILE_PX, tile_in_latent
from ..teasr_core.tiling import TilePlan, plan_tiles
from .builtin_model import is_builtin
from .conditioning import LQ_KEY

# Automatic tiles of Qwen-Image: the size it was made for. The built-in model's are `restore`'s, for a CPU's sake.
QWEN_TILE_PX = 1024
QWEN_OVERLAP_PX = 128


def host_plan(model: ModelPatcher, height: int, width: int, tile_px: int, overlap_px: int) -> TilePlan:
    """The tiles of a latent of height x width. 0 is automatic; a tile as large as the image is no tile."""
    patch_multiple = 2 * int(model.get_model_object("diffusion_model").patch_size)
    downscale = int(model.get_model_object("latent_format").spacial_downscale_ratio)
    auto_px = (AUTO_TILE_PX, AUTO_OVERLAP_PX) if is_builtin(model) else (QWEN_TILE_PX, QWEN_OVERLAP_PX)
    tile, overlap = tile_in_latent(tile_px, overlap_px, downscale, patch_multiple, auto_px)
    plan = plan_tiles(height, width, tile, overlap, patch_multiple)
    if plan.count > 1 and (height % patch_multiple or width % patch_multiple):
        raise InputError(
            f"a latent of {width} x {height} cannot be tiled: expected multiples of {patch_multiple}, so let "
            "TEASRCondition make it"
        )
    return plan


def tile_memory(plan: TilePlan) -> Callable[..., Any]:
    """PREPARE_SAMPLING wrapper: the host makes room for one tile, not for the whole image."""

    def prepare(executor: Any, model: Any, noise_shape: Any, conds: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        def crop(entry: dict[str, Any]) -> dict[str, Any]:
            latents = [latent[..., : plan.height, : plan.width] for latent in entry.get(LQ_KEY, [])]
            return entry | {LQ_KEY: latents} if latents else entry

        tile_shape = [*noise_shape[:-2], plan.height, plan.width]
        tile_conds = {kind: [crop(entry) for entry in entries] for kind, entries in conds.items()}
        loaded, _, models = executor(model, tile_shape, tile_conds, *args, **kwargs)
        return loaded, conds, models

    return prepare
