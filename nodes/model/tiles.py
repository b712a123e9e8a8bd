"""The model's forward in tiles, and each tile in smaller pieces if memory runs out for it (R7, R8)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...teasr_core.model.velocity import Velocity
from ...teasr_core.sampling.smaller_pieces import PieceLimit, SteppingDown
from ...teasr_core.sampling.tiled_velocity import TiledVelocity
from ...teasr_core.tiling import TileCallback, TilePlan
from ..host.memory import is_out_of_memory, release


@dataclass(frozen=True)
class ModelTiles:
    """How the model's input is cut. A plan of one tile leaves it whole; the plan is in latent pixels.

    limit: the largest piece that has not failed so far. All steps and images of a run share this object.
    """

    plan: TilePlan
    on_tile: TileCallback | None = None
    limit: PieceLimit = field(default_factory=PieceLimit)

    def cut(self, velocity: Velocity, multiple: int) -> Velocity:
        """`velocity` evaluated tile by tile. The sides of smaller pieces are multiples of `multiple`."""
        fitting = SteppingDown(velocity, multiple, release, None, self.limit, is_out_of_memory)
        return TiledVelocity(fitting, self.plan, self.on_tile) if self.plan.count > 1 else fitting
