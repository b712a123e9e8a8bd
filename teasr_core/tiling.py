"""Plans of overlapping tiles, their blend weights, and codecs that run tile by tile (R7).

All tiles of a plan have one size, so that nothing recompiles, and start on the token grid. Coordinates are latent
pixels. `sampling/tiled_velocity.py` samples by such a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import InputError

TileCallback = Callable[[int, int], None]

# Automatic tiles of the built-in model. Attention is quadratic: on a CPU small tiles are the fast ones; the condition
# encoder sees past their edges, so a small overlap hides them (docs/log/tiles_and_memory.md).
AUTO_TILE_PX = 144
AUTO_OVERLAP_PX = 16

# Tiles of Qwen-Image, for its transformer and its VAE. Decoding 1024 x 1024 in bf16 takes about 4.3 GiB and 2048 x 2048
# 17.2 GiB (ComfyUI's estimate).
QWEN_TILE_PX = 1024
QWEN_OVERLAP_PX = 128


@dataclass(frozen=True)
class TilePlan:
    """Tiles of `height` x `width` whose top left corners are at `rows` x `columns`. One tile means no tiling.

    border: above 0, tiles are weighted by the distance to their border, up to this distance (`border_window`); at 0 by
    ramps where they overlap.
    """

    height: int
    width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    border: int = 0

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)

    def corners(self, wanted: torch.Tensor | None = None) -> list[tuple[int, int]]:
        """(row, column) of every tile, or of those alone that hold a pixel of `wanted` (H, W) bool."""
        every = [(y, x) for y in self.rows for x in self.columns]
        if wanted is None:
            return every
        return [(y, x) for y, x in every if bool(wanted[y : y + self.height, x : x + self.width].any())]


def tile_in_latent(
    tile_px: int,
    overlap_px: int,
    downscale: int,
    patch_multiple: int,
    auto_px: tuple[int, int] = (AUTO_TILE_PX, AUTO_OVERLAP_PX),
) -> tuple[int, int]:
    """(tile, overlap) in latent pixels from the user's pixels; 0 is automatic: `auto_px`, less overlap in small tiles.

    InputError unless both are whole tokens (8 px built-in) and the overlap is at most half a tile.
    """
    tile_px = tile_px or auto_px[0]
    overlap_px = overlap_px or min(auto_px[1], tile_px // 2)
    tile_unit, overlap_unit = patch_multiple * downscale, patch_multiple * downscale // 2
    if tile_px < tile_unit or tile_px % tile_unit:
        raise InputError(f"tile_px is {tile_px}: expected a multiple of {tile_unit}, or 0 for automatic")
    if overlap_px < 0 or overlap_px % overlap_unit or 2 * overlap_px > tile_px:
        raise InputError(
            f"overlap_px is {overlap_px}: expected a multiple of {overlap_unit} up to half of tile_px {tile_px}, or 0"
        )
    return tile_px // downscale, overlap_px // downscale


def tile_offsets(size: int, tile: int, overlap: int, grid: int) -> tuple[int, ...]:
    """Return where equal tiles start that cover `size`: on multiples of `grid`, spread evenly, as few as possible.

    Neighbours overlap by at least `overlap`.
    """
    if tile >= size:
        return (0,)
    count = -(-(size - overlap) // (tile - overlap))
    last = size - tile
    return tuple(min(last, round(last * i / (count - 1) / grid) * grid) for i in range(count))


def plan_tiles(height: int, width: int, tile: int, overlap: int, multiple: int, border: int = 0) -> TilePlan:
    """Cover a latent of height x width with square tiles of side `tile`. A side of the latent below `tile` is not cut.

    `tile` must be a multiple of `multiple` (an even token grid, `QwenArchitecture.block_multiple`), and `overlap` a
    multiple of half of that (whole tokens) from 0 to tile/2; anything else raises InputError. Where there is more than
    one tile, the caller has padded height and width to multiples of `multiple`.
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
        border=border,
    )


def tile_weight(plan: TilePlan, y: int, x: int) -> torch.Tensor:
    """Return the weights (tile, tile) of the tile at (y, x) of a picture that is computed in the tiles of `plan`."""
    if plan.border:
        return border_window(plan.height, plan.width, plan.border)
    return torch.outer(blend_window(plan.height, y, plan.rows), blend_window(plan.width, x, plan.columns))


def border_window(height: int, width: int, border: int) -> torch.Tensor:
    """Return the weights (height, width) that rise from 1 / border at the edge of a tile to 1 at `border` inside it.

    All edges count, those of the picture too; the weights of a pixel are divided by their sum afterwards. It is the
    window of DiffSynth-Studio's `TileWorker`, for adapters that were made with it.
    """

    def distance(size: int) -> torch.Tensor:
        place = torch.arange(size)
        return torch.minimum(place + 1, size - place)

    nearest = torch.minimum(distance(height)[:, None], distance(width)[None])  # (height, width)
    return (nearest / border).clamp(max=1)


def blend_window(tile: int, offset: int, offsets: tuple[int, ...]) -> torch.Tensor:
    """Return the weights (tile,) of the tile at `offset`: ramps where it overlaps its neighbours, 1 elsewhere."""
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


def plan_codec_tiles(height: int, width: int, tile: int, overlap: int, multiple: int = 2, border: int = 0) -> TilePlan:
    """Plan like `plan_tiles`, then shrink the tiles as far as their number allows. All numbers are latent pixels.

    A picture slightly larger than one tile gets four tiles of about half its size, not four of nearly its full size.
    """
    plan = plan_tiles(height, width, tile, overlap, multiple)

    def side(size: int, count: int) -> int:
        least = -(-(size + (count - 1) * overlap) // count)
        return -(-least // multiple) * multiple if count > 1 else size

    tall, wide = side(height, len(plan.rows)), side(width, len(plan.columns))
    grid = multiple // 2
    return TilePlan(
        tall, wide, tile_offsets(height, tall, overlap, grid), tile_offsets(width, wide, overlap, grid), border
    )


def convert_in_tiles(
    convert: Callable[[torch.Tensor], torch.Tensor],
    source: torch.Tensor,
    plan: TilePlan,
    size_in: int,
    size_out: int,
    on_tile: TileCallback | None = None,
) -> torch.Tensor:
    """Apply `convert`, (B, C, H, W) -> (B, C', H', W'), to the tiles of `plan` and blend them on its results' device.

    One latent pixel is size_in pixels wide in `source` and size_out pixels in the result. `on_tile(done, count)` runs
    before each tile and may raise to stop. A single tile is converted without blending.
    """
    tiles = plan.corners()
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
        weight = _codec_weight(plan, y, x, size_out).to(tile)  # (tile, tile)
        window = _window(y, x, plan, size_out)
        total[window] += weight * tile
        weights[window] += weight
    return total.div_(weights)


def _codec_weight(plan: TilePlan, y: int, x: int, size: int) -> torch.Tensor:
    """Return the weights (tile * size, tile * size) of a codec's tile at (y, x)."""
    if plan.border:
        return border_window(plan.height * size, plan.width * size, plan.border * size)
    return torch.outer(ramp(plan.height, y, plan.rows, size), ramp(plan.width, x, plan.columns, size))


def _window(y: int, x: int, plan: TilePlan, size: int) -> tuple[Any, ...]:
    return (..., slice(y * size, (y + plan.height) * size), slice(x * size, (x + plan.width) * size))


def ramp(tile: int, offset: int, offsets: tuple[int, ...], size: int) -> torch.Tensor:
    """Return the weights (tile * size,) of a codec's tile: 0 in the outer quarter of an overlap, then rising to 1.

    Unlike `blend_window` it leaves the edge out, where convolutions have read the zeros beyond the tile.
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
    """Return a ramp (shared,) whose sum with its own mirror image is 1 everywhere."""
    margin = shared // 4
    return ((torch.arange(shared) + 0.5 - margin) / max(1, shared - 2 * margin)).clamp(0, 1)
