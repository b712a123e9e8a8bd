"""One step of the model in tiles, and each tile in pieces where memory does not suffice for it (R7, R8)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...teasr_core.model.velocity import Velocity
from ...teasr_core.sampling.smaller_pieces import PieceLimit, SteppingDown
from ...teasr_core.sampling.tiled_velocity import TiledVelocity
from ...teasr_core.tiling import TileCallback, TilePlan
from ..host.memory import is_out_of_memory, release


@dataclass(frozen=True)
class HostTiles:
    """`plan` in latent pixels, one tile means untiled.

    limit: what memory did not suffice for so far; one object for all steps and images of a run.
    """

    plan: TilePlan
    on_tile: TileCallback | None = None
    limit: PieceLimit = field(default_factory=PieceLimit)

    def around(self, velocity: Velocity, multiple: int) -> Velocity:
        """`velocity` tile by tile; sides of pieces are multiples of `multiple`, an even token grid."""
        fitting = SteppingDown(velocity, multiple, release, None, self.limit, is_out_of_memory)
        return TiledVelocity(fitting, self.plan, self.on_tile) if self.plan.count > 1 else fitting
