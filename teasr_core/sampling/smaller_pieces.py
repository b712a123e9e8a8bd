"""A velocity that takes smaller pieces when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..memory import is_out_of_memory, release_memory
from ..model.velocity import Velocity
from ..tiling import plan_tiles
from .tiled_velocity import TiledVelocity

OVERLAP_SHARE = 4  # pieces of side s overlap by s / 4


@dataclass
class PieceLimit:
    """Largest side in latent pixels that is still tried, None before the first failure.

    Handed to every `SteppingDown` of a run, it remembers what did not fit over model calls, steps and images.
    """

    largest: int | None = None


class SteppingDown:
    """`velocity` that halves its input while memory does not suffice. A `velocity.Velocity`.

    Args:
        multiple: sides of the pieces are multiples of it (`QwenArchitecture.block_multiple`), and it is the least side.
        release: called after each failure, when nothing of the failed call is alive any more.
        on_step_down: told the new side in latent pixels, for the report.
        limit: what did not fit before; a new one where none is given.
        is_out_of_memory: which errors to answer with smaller pieces; all others pass.
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
        """Side in latent pixels that is tried at most; None before the first failure."""
        return self.limit.largest

    def __call__(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        """As `Velocity`: latents (B, C, H, W), times (B,)."""
        while True:
            v = self._try(z_t, t_cur, z_lq, t_tar)
            if v is not None:
                return v
            self.release()
            self._halve(max(z_t.shape[-2:]))

    def _try(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor
    ) -> torch.Tensor | None:
        """None when memory ran out; the failed call's tensors are gone when this returns."""
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
