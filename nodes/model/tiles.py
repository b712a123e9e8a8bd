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

    def cut(self, denoise: Velocity, multiple: int, low_quality: torch.Tensor) -> Velocity:
        """`denoise`, which gives clean latents, evaluated tile by tile.

        The sides of smaller pieces are multiples of `multiple`. Where no tile is computed, the clean latent is
        `low_quality` (B, C, 1, H, W).
        """
        fitting = SteppingDown(denoise, multiple, release, None, self.limit, is_out_of_memory)
        if self.plan.count == 1:
            return fitting
        return TiledVelocity(fitting, self.plan, self.on_tile, self.wanted, elsewhere=lambda *_: low_quality)
