"""Tiles inside ComfyUI's samplers, stock ones too: where they lie, and how much memory one of them needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...teasr_core.errors import InputError
from ...teasr_core.tiling import (
    AUTO_OVERLAP_PX,
    AUTO_TILE_PX,
    QWEN_OVERLAP_PX,
    QWEN_TILE_PX,
    TilePlan,
    plan_tiles,
    tile_in_latent,
)
from ..host.memory import available_bytes, largest_that_fits, too_large
from ..model.builtin_model import is_builtin
from ..model.conditioning import LQ_KEY
from ..model.dual_branch import TILES, recipe_of
from ..model.tiles import ModelTiles

# Automatic tiles of Qwen-Image have the size it was made for, or a smaller one if the card has no room for it even
# after ComfyUI has moved all weights off. They are never larger, however much is free: a picture must not depend on
# what else is loaded. The automatic tiles of the built-in model stand in `tiling`; they suit a CPU.
QWEN_SIDES_PX = (QWEN_TILE_PX, 512, 256)


def plan_model_tiles(model: ModelPatcher, height: int, width: int, tile_px: int, overlap_px: int) -> TilePlan:
    """The tiles of a latent of height x width. 0 is automatic; a tile as large as the image leaves it whole."""
    patch_multiple = token_multiple(model)
    downscale = int(model.get_model_object("latent_format").spacial_downscale_ratio)
    recipe, short = recipe_of(model), ""
    auto_px = (AUTO_TILE_PX, AUTO_OVERLAP_PX) if is_builtin(model) else (QWEN_TILE_PX, QWEN_OVERLAP_PX)
    auto_px = recipe.tiles_px(auto_px)
    if tile_px == 0 and not is_builtin(model):
        side_px, short = fitting_side_px(model, height, width, downscale, auto_px[0])
        if side_px < auto_px[0]:
            auto_px = (side_px, min(QWEN_OVERLAP_PX, side_px // 4))
    tile, overlap = tile_in_latent(tile_px, overlap_px, downscale, patch_multiple, auto_px)
    plan = plan_tiles(height, width, tile, overlap, patch_multiple, recipe.border(tile, overlap))
    if plan.count > 1 and not is_whole(height, width, patch_multiple):
        raise InputError(
            f"a latent of {width} x {height} cannot be tiled: expected multiples of {patch_multiple}, so let "
            "TEASRCondition make it"
        )
    if short and plan.count > 1:
        logging.info(f"TEASR: {plan.count} tiles of {auto_px[0]} px: {short}")
    return plan


def token_multiple(model: ModelPatcher) -> int:
    """The sides of a tile are multiples of this many latent pixels, so that its token grid is even."""
    return 2 * int(model.get_model_object("diffusion_model").patch_size)


def is_whole(height: int, width: int, multiple: int) -> bool:
    return height % multiple == 0 and width % multiple == 0


def stock_tiles(executor: Any, noise: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper of the built-in MODEL: automatic tiles for stock samplers, which have none of their own.

    The model was trained on 128 px. With attention over a much larger picture, several steps damage blocks of it
    (docs/log/tiles_and_memory.md). A latent that is not whole tokens, as stock VAE Encode may make, stays in one piece.
    """
    guider = executor.class_obj  # its options belong to this run alone
    options = guider.model_options.setdefault("transformer_options", {})
    height, width = noise.shape[-2:]
    if TILES not in options and is_whole(height, width, token_multiple(guider.model_patcher)):
        options[TILES] = ModelTiles(plan_model_tiles(guider.model_patcher, height, width, 0, 0), check_interrupt)
    return executor(noise, *args, **kwargs)


def check_interrupt(_done: int, _count: int) -> None:
    """Called before each tile: stop if the user has pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def fitting_side_px(model: ModelPatcher, height: int, width: int, downscale: int, usual_px: int) -> tuple[int, str]:
    """The side of a tile in pixels for a latent of height x width, and why it is smaller than usual, if it is."""
    sides_px = (usual_px, *(side for side in QWEN_SIDES_PX if side < usual_px))

    def needed(side_px: int) -> float:
        side = side_px // downscale
        return forward_memory(model, min(side, height), min(side, width))

    free = available_bytes(model.load_device)
    side_px = largest_that_fits(sides_px, needed, free)
    if side_px == usual_px:
        return side_px, ""
    largest = min(usual_px, downscale * max(height, width))
    return side_px, too_large(largest, needed(largest), free)


def forward_memory(model: ModelPatcher, height: int, width: int) -> float:
    """Bytes that one forward on a latent of height x width takes beside the weights, by ComfyUI's own estimate."""
    latent = torch.empty(1, model.get_model_object("latent_format").latent_channels, 1, height, width, device="meta")
    shapes = model.model.extra_conds_shapes(**{LQ_KEY: [latent]})
    return model.model.memory_required(latent.shape, cond_shapes={key: [shape] for key, shape in shapes.items()})


def tile_memory(plan: TilePlan) -> Callable[..., Any]:
    """PREPARE_SAMPLING wrapper: ComfyUI makes room for one tile, not for the whole image."""

    def prepare(executor: Any, model: Any, noise_shape: Any, conds: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        def crop(entry: dict[str, Any]) -> dict[str, Any]:
            latents = [latent[..., : plan.height, : plan.width] for latent in entry.get(LQ_KEY, [])]
            return entry | {LQ_KEY: latents} if latents else entry

        tile_shape = [*noise_shape[:-2], plan.height, plan.width]
        tile_conds = {kind: [crop(entry) for entry in entries] for kind, entries in conds.items()}
        loaded, _, models = executor(model, tile_shape, tile_conds, *args, **kwargs)
        return loaded, conds, models

    return prepare
