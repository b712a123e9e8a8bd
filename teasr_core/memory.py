"""When a tile does not fit: cut it into smaller ones and go on, keeping every tile that is finished (R8).

`SteppingDown` is a velocity around a velocity, below the tiles: `TiledVelocity` adds up what it returns and never hears
that a tile came in pieces. What did not fit once is not tried again.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import InputError

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


def peak_memory_mb() -> float:
    """Peak memory in MiB: the accelerator's where one is in use, else the process's resident set."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", 0) / 2**20
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
