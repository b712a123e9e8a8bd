"""A codec's tiles: both hosts cut and blend a picture and its latent alike (R9).

Unlike the sampler's tiles these are met once, and their edges are left out: convolutions pad an edge with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .tiling import TileCallback, TilePlan, plan_tiles, tile_offsets


def plan_codec_tiles(height: int, width: int, tile: int, overlap: int, multiple: int = 2) -> TilePlan:
    """As `plan_tiles`, with tiles no larger than their number needs them to be; all in latent pixels.

    A picture a little larger than one tile comes in four of about half its size, not in four of nearly its own.
    """
    plan = plan_tiles(height, width, tile, overlap, multiple)

    def side(size: int, count: int) -> int:
        least = -(-(size + (count - 1) * overlap) // count)
        return -(-least // multiple) * multiple if count > 1 else size

    tall, wide = side(height, len(plan.rows)), side(width, len(plan.columns))
    grid = multiple // 2
    return TilePlan(tall, wide, tile_offsets(height, tall, overlap, grid), tile_offsets(width, wide, overlap, grid))


def convert_in_tiles(
    convert: Callable[[torch.Tensor], torch.Tensor],
    source: torch.Tensor,
    plan: TilePlan,
    size_in: int,
    size_out: int,
    on_tile: TileCallback | None = None,
) -> torch.Tensor:
    """`convert` (B, C, H, W) -> (B, C', H', W') over the tiles of `plan`, blended on the device of its results.

    One latent pixel is size_in wide in `source`, size_out after. `on_tile(done, count)` runs before each tile and may
    raise. A single tile is converted as it is.
    """
    tiles = [(y, x) for y in plan.rows for x in plan.columns]
    height, width = (size // size_in * size_out for size in source.shape[2:])
    total = weights = torch.zeros(())
    for done, (y, x) in enumerate(tiles):
        if on_tile is not None:
            on_tile(done, len(tiles))
        if len(tiles) == 1:
            return convert(source)
        tile = convert(source[_window(y, x, plan, size_in)])  # (B, C', tile, tile)
        if total.ndim == 0:
            total = tile.new_zeros(*tile.shape[:2], height, width)  # (B, C', H', W')
            weights = tile.new_zeros(1, 1, height, width)  # (1, 1, H', W')
        down, across = ramp(plan.height, y, plan.rows, size_out), ramp(plan.width, x, plan.columns, size_out)
        weight = torch.outer(down, across).to(tile)  # (tile, tile)
        window = _window(y, x, plan, size_out)
        total[window] += weight * tile
        weights[window] += weight
    return total.div_(weights)


def _window(y: int, x: int, plan: TilePlan, size: int) -> tuple[Any, ...]:
    return (..., slice(y * size, (y + plan.height) * size), slice(x * size, (x + plan.width) * size))


def ramp(tile: int, offset: int, offsets: tuple[int, ...], size: int) -> torch.Tensor:
    """Weight (tile * size,) of a tile: 0 over the outer quarter of an overlap, rising over the inner half, then 1.

    Unlike `tiling.blend_window`: what convolutions make of the zeros beyond a tile's edge must not count.
    """
    length, index = tile * size, offsets.index(offset)
    weight = torch.ones(length)
    if index > 0:
        shared = (offsets[index - 1] + tile - offset) * size
        weight[:shared] = _rise(shared)
    if index < len(offsets) - 1:
        shared = (offset + tile - offsets[index + 1]) * size
        weight[length - shared :] *= _rise(shared).flip(0)
    return weight


def _rise(shared: int) -> torch.Tensor:
    """(shared,) whose sum with its own mirror image is 1."""
    margin = shared // 4
    return ((torch.arange(shared) + 0.5 - margin) / max(1, shared - 2 * margin)).clamp(0, 1)
