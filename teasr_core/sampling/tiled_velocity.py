"""A velocity that is evaluated tile by tile is itself a velocity."""

from __future__ import annotations

import torch

from ..model.flow import broadcast_time
from ..model.velocity import Velocity
from ..tiling import TileCallback, TilePlan, tile_weight


def towards(clean: torch.Tensor) -> Velocity:
    """The velocity of the straight path from any z_t at a time above 0 to the latent `clean` (B, C, H, W)."""
    return lambda z_t, t_cur, z_lq, t_tar: (z_t - clean) / broadcast_time(t_cur, z_t)


def towards_lq(z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
    """The velocity (B, C, H, W) of the straight path that ends at the low-quality latent."""
    return towards(z_lq)(z_t, t_cur, z_lq, t_tar)


class TiledVelocity:
    """Blends the results of `velocity` on the tiles of `plan`. Before each tile it calls `on_tile(done, count)`,
    which may raise to stop.

    wanted: (H, W) bool, the latent pixels that are needed. A tile without one of them is not computed, and where no
    tile was, `elsewhere` gives the result: unless it says otherwise, the picture stays the low-quality one there.
    """

    def __init__(
        self,
        velocity: Velocity,
        plan: TilePlan,
        on_tile: TileCallback | None = None,
        wanted: torch.Tensor | None = None,
        elsewhere: Velocity = towards_lq,
    ) -> None:
        self.velocity = velocity
        self.plan = plan
        self.on_tile = on_tile
        self.tiles = plan.corners(wanted)
        self.elsewhere = elsewhere

    def __call__(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        plan, tiles = self.plan, self.tiles
        total = torch.zeros_like(z_t)  # (B, C, H, W)
        weights = torch.zeros_like(z_t[:1, :1])  # (1, 1, H, W)
        for done, (y, x) in enumerate(tiles):
            if self.on_tile is not None:
                self.on_tile(done, len(tiles))
            window = (..., slice(y, y + plan.height), slice(x, x + plan.width))
            v = self.velocity(z_t[window], t_cur, z_lq[window], t_tar)  # (B, C, tile, tile)
            weight = tile_weight(plan, y, x).to(v)  # (tile, tile)
            total[window] += weight * v
            weights[window] += weight
        if len(tiles) < plan.count:
            rest = self.elsewhere(z_t, t_cur, z_lq, t_tar)  # (B, C, H, W)
            return torch.where(weights > 0, total.div_(weights), rest.to(total))
        return total.div_(weights)  # in place, so that no further tensor of the picture's size is needed
