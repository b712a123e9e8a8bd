"""Tiles as a velocity: noise and condition cropped alike, blended every step, one global noise field (R7).

`TiledVelocity` is itself a `Velocity`, so samplers need not know. All tiles have one size (nothing recompiles) and
start on the token grid. Coordinates are latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .errors import InputError
from .model.velocity import Velocity

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


class TiledVelocity:
    """Blend of `velocity` over the tiles of `plan`. `on_tile(done, count)` runs before each tile and may raise."""

    def __init__(self, velocity: Velocity, plan: TilePlan, on_tile: TileCallback | None = None) -> None:
        self.velocity = velocity
        self.plan = plan
        self.on_tile = on_tile

    def __call__(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        plan = self.plan
        total = torch.zeros_like(z_t)  # (B, C, H, W)
        weights = torch.zeros_like(z_t[:1, :1])  # (1, 1, H, W)
        tiles = [(y, x) for y in plan.rows for x in plan.columns]
        for done, (y, x) in enumerate(tiles):
            if self.on_tile is not None:
                self.on_tile(done, len(tiles))
            window = (..., slice(y, y + plan.height), slice(x, x + plan.width))
            v = self.velocity(z_t[window], t_cur, z_lq[window], t_tar)  # (B, C, tile, tile)
            weight = torch.outer(blend_window(plan.height, y, plan.rows), blend_window(plan.width, x, plan.columns)).to(
                v
            )  # (tile, tile)
            total[window] += weight * v
            weights[window] += weight
        return total.div_(weights)  # a large picture's latent is held as few times as can be
