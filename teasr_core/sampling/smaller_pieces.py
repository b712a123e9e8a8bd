"""A velocity that takes smaller pieces when memory runs out, and keeps every tile that is finished (R8).

`SteppingDown` wraps a velocity and stands below the tiles: `TiledVelocity` adds up what it returns and never learns
that a tile was computed in pieces. A size that failed once is not tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..memory import is_out_of_memory, release_memory
from ..model.velocity import Velocity
from ..tiling import plan_tiles
from .tiled_velocity import TiledVelocity

OVERLAP_SHARE = 4  # pieces of side s overlap by s / OVERLAP_SHARE


@dataclass
class PieceLimit:
    """The largest side, in latent pixels, that has not yet failed; None before the first failure.

    Every `SteppingDown` of a run gets the same one, so that a failure is remembered for later calls, steps and images.
    """

    largest: int | None = None


class SteppingDown:
    """A `Velocity` that calls another one, and halves the side of its pieces each time memory runs out.

    Args:
        multiple: the smallest side of a piece; every side is a multiple of it (`QwenArchitecture.block_multiple`).
        release: called after each failure, when all tensors of the failed call are freed.
        on_step_down: called with the new side in latent pixels, for the report.
        limit: the largest side that has not failed yet; without it, a new one.
        is_out_of_memory: says which errors are answered with smaller pieces; all others are raised.
    Raises InputError when not even the smallest piece fits.
    """

    def __init__(
        self,
        velocity: Velocity,
        multiple: int,
        release: Callable[[], None] = release_memory,
        on_step_down: Callable[[int], None] | None = None,
        limit: PieceLimit | None = None,
        is_out_of_memory: Callable[[Exception], bool] = is_out_of_memory,
    ) -> None:
        self.velocity = velocity
        self.multiple = multiple
        self.release = release
        self.on_step_down = on_step_down
        self.limit = limit or PieceLimit()
        self.is_out_of_memory = is_out_of_memory

    @property
    def largest(self) -> int | None:
        """The largest side that is still tried, in latent pixels; None before the first failure."""
        return self.limit.largest

    def __call__(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        """Evaluate the velocity: latents (B, C, H, W), times (B,)."""
        while True:
            v = self._try(z_t, t_cur, z_lq, t_tar)
            if v is not None:
                return v
            self.release()
            self._halve(max(z_t.shape[-2:]))

    def _try(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor
    ) -> torch.Tensor | None:
        """Return None when memory ran out; by then the tensors of the failed call are freed."""
        velocity: Velocity = self.velocity
        if self.largest is not None:
            overlap = self.largest // OVERLAP_SHARE // self.multiple * self.multiple
            height, width = z_t.shape[-2:]
            plan = plan_tiles(height, width, self.largest, overlap, self.multiple)
            velocity = TiledVelocity(self.velocity, plan) if plan.count > 1 else self.velocity
        try:
            return velocity(z_t, t_cur, z_lq, t_tar)
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
            return None

    def _halve(self, side: int) -> None:
        tried = side if self.largest is None else min(side, self.largest)
        smaller = tried // 2 // self.multiple * self.multiple
        if smaller < self.multiple:
            raise InputError(
                f"memory ran out even for a piece of {tried} latent pixels: close other programs, choose a smaller "
                "dtype, or keep the weights off the device (--lowvram in ComfyUI, --offload on the command line)"
            )
        self.limit.largest = smaller
        if self.on_step_down is not None:
            self.on_step_down(smaller)
