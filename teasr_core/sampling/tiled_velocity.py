"""A velocity that is evaluated tile by tile is itself a velocity."""

from __future__ import annotations

import torch

from ..model.velocity import Velocity
from ..tiling import TileCallback, TilePlan, blend_window


class TiledVelocity:
    """Blends the results of `velocity` on the tiles of `plan`. Before each tile it calls `on_tile(done, count)`,
    which may raise to stop.
    """

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
        return total.div_(weights)  # in place, so that no further tensor of the picture's size is needed
