"""When a tile does not fit: cut it into smaller ones and go on, keeping every tile that is finished (R8).

`SteppingDown` is a velocity around a velocity, below the tiles: `TiledVelocity` adds up what it returns and never hears
that a tile came in pieces. What did not fit once is not tried again.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .errors import InputError
from .model.velocity import Velocity
from .tiling import TiledVelocity, plan_tiles

OVERLAP_SHARE = 4  # pieces of side s overlap by s / 4
# How allocators without an error class of their own say it: the CPU's, Apple's, and the system where a file is mapped.
_MESSAGES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of whatever device, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:  # what it says may be a file's name
        return error.errno == errno.ENOMEM
    # OSError without a number is Pillow's decoders and encoders.
    return isinstance(error, RuntimeError | OSError) and any(message in str(error).lower() for message in _MESSAGES)


@contextmanager
def refuse_out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """InputError where memory runs out in this block, so that the next and smaller image has its turn.

    doing: what the memory does not suffice for. advice: what to do. All other errors pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"memory does not suffice {doing}: {advice}") from error


def release_memory() -> None:
    """Give what the allocator holds in reserve back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
