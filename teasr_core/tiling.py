"""Tiles as a velocity: noise and condition cropped alike, blended every step, one global noise field (R7).

`TiledVelocity` is itself a `Velocity`, so samplers need not know. All tiles have one size (nothing recompiles) and
start on the token grid. Coordinates are latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import InputError

TileCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class TilePlan:
    """Equal tiles of `height` x `width` at `rows` x `columns` offsets; one tile means untiled."""

    height: int
    width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)


def tile_offsets(size: int, tile: int, overlap: int, grid: int) -> tuple[int, ...]:
    """Starts of equal tiles that cover `size` with at least `overlap` between neighbours, on multiples of `grid`.

    As few tiles as that takes, spread evenly.
    """
    if tile >= size:
        return (0,)
    count = -(-(size - overlap) // (tile - overlap))
    last = size - tile
    return tuple(min(last, round(last * i / (count - 1) / grid) * grid) for i in range(count))


def plan_tiles(height: int, width: int, tile: int, overlap: int, multiple: int) -> TilePlan:
    """Cover a latent of height x width with square tiles of side `tile`, smaller only where the latent is.

    tile must be a multiple of `multiple` (an even token grid, `QwenArchitecture.block_multiple`), overlap of half of
    it (whole tokens), and 0 <= overlap <= tile/2: InputError otherwise. height and width are multiples of `multiple`
    too where there is more than one tile; the caller has padded them.
    """
    if tile < multiple or tile % multiple:
        raise InputError(f"tile of {tile} latent pixels: expected a multiple of {multiple}")
    grid = multiple // 2
    if overlap < 0 or overlap % grid or 2 * overlap > tile:
        raise InputError(f"overlap of {overlap} latent pixels: expected a multiple of {grid} from 0 to {tile // 2}")
    return TilePlan(
        height=min(tile, height),
        width=min(tile, width),
        rows=tile_offsets(height, tile, overlap, grid),
        columns=tile_offsets(width, tile, overlap, grid),
    )


def blend_window(tile: int, offset: int, offsets: tuple[int, ...]) -> torch.Tensor:
    """Weight (tile,) of the tile at `offset`: linear ramps over the overlaps with its neighbours, 1 elsewhere."""
    window = torch.ones(tile)
    index = offsets.index(offset)
    if index > 0:
        shared = offsets[index - 1] + tile - offset
        if shared > 0:
            window[:shared] *= (torch.arange(shared) + 0.5) / shared
    if index < len(offsets) - 1:
        shared = offset + tile - offsets[index + 1]
        if shared > 0:
            window[-shared:] *= (torch.arange(shared).flip(0) + 0.5) / shared
    return window


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
