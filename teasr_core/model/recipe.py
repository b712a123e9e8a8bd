"""How an adapter is meant to be run, where that is not TEASR's own way (docs/decisions.md#recipes)."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONDITION_TIMES = ("target", "current")
GELUS = ("tanh", "sigmoid")
BLENDS = ("ramp", "border")


@dataclass(frozen=True)
class Recipe:
    """What a LoRA file says of its own use. The defaults are TEASR's; a file of TEASR's own says nothing of this.

    Attributes:
        condition_time: the time of the condition branch, "target" (TEASR) or "current" (that of the noise branch).
        gelu: how the MLPs of all blocks approximate GELU, "tanh" (Qwen-Image) or "sigmoid", x * sigmoid(1.702 x).
        velocity_scale: what the network's velocity is multiplied by, above 0.
        start_time: the time at which sampling starts, above 0 and at most 1.
        start_encoder: the name of the file of a second VAE encoder, of whose latent of the LQ image the noise branch
            starts, mixed with noise at `start_time`. Empty where it starts from noise alone; `start_time` is then 1.
        start_encoder_sha256: what that file's tensors hash to.
        fidelity_times: the times to which noise is mixed into the LQ latent of the condition branch, for fidelities at
            equal distances from 0 to 1. Empty where fidelity scales the initial noise down instead.
        tile_px, overlap_px: automatic tiles of the transformer and of the VAE in pixels; 0 where the base decides.
        blend: how tiles are weighted, "ramp" (`tiling.blend_window`) or "border" (`tiling.border_window`).
    """

    condition_time: str = "target"
    gelu: str = "tanh"
    velocity_scale: float = 1.0
    start_time: float = 1.0
    start_encoder: str = ""
    start_encoder_sha256: str = ""
    fidelity_times: tuple[float, ...] = ()
    tile_px: int = 0
    overlap_px: int = 0
    blend: str = "ramp"

    @property
    def uses_start_latent(self) -> bool:
        return bool(self.start_encoder)

    def lq_time(self, fidelity: float) -> float:
        """The time to which noise is mixed into the LQ latent; 0 leaves the latent clean. fidelity: 0 to 1.

        The nearest of `fidelity_times` is taken, and of two that are as near the one of the higher fidelity.
        """
        if not self.fidelity_times:
            return 0.0
        return self.fidelity_times[math.floor(fidelity * (len(self.fidelity_times) - 1) + 0.5)]

    def tiles_px(self, auto_px: tuple[int, int]) -> tuple[int, int]:
        """(tile, overlap) in pixels of automatic tiles: the recipe's, or `auto_px` where it has none."""
        return (self.tile_px, self.overlap_px) if self.tile_px else auto_px

    def border(self, tile: int, overlap: int) -> int:
        """The width of a tile's weighted border (`tiling.TilePlan`): half the distance of neighbouring tiles, or 0."""
        return (tile - overlap) // 2 if self.blend == "border" else 0
