"""The model's forward in tiles, and each tile in smaller pieces if memory runs out for it (R7, R8)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...teasr_core.model.velocity import Velocity
from ...teasr_core.sampling.smaller_pieces import PieceLimit, SteppingDown
from ...teasr_core.sampling.tiled_velocity import TiledVelocity
from ...teasr_core.tiling import TileCallback, TilePlan
from ..host.memory import is_out_of_memory, release


@dataclass(frozen=True)
class ModelTiles:
    """How the model's input is cut. A plan of one tile leaves it whole; the plan is in latent pixels.

    limit: the largest piece that has not failed so far. All steps and images of a run share this object.
    wanted: (H, W) bool, the latent pixels that are needed; the others may stay the low-quality picture's.
    """

    plan: TilePlan
    on_tile: TileCallback | None = None
    limit: PieceLimit = field(default_factory=PieceLimit)
    wanted: torch.Tensor | None = None

    def cut(self, denoise: Velocity, multiple: int) -> Velocity:
        """`denoise`, which gives clean latents, evaluated tile by tile.

        The sides of smaller pieces are multiples of `multiple`.
        """
        fitting = SteppingDown(denoise, multiple, release, None, self.limit, is_out_of_memory)
        if self.plan.count == 1:
            return fitting
        return TiledVelocity(fitting, self.plan, self.on_tile, self.wanted, elsewhere=low_quality)


def low_quality(z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
    """The clean latent where no tile was computed: that of the low-quality picture."""
    return z_lq
