"""Memory that ran out: how to recognise it, refuse in one line, free what is held, and how much was used at most."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import InputError

# The messages of allocators without an error class: the CPU's, Apple's, and the system's when a file is mapped.
_MESSAGES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that an allocator, of any device, ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:  # its text may hold the name of a file
        return error.errno == errno.ENOMEM
    # Pillow's decoders and encoders raise OSError without a number.
    return isinstance(error, RuntimeError | OSError) and any(message in str(error).lower() for message in _MESSAGES)


@contextmanager
def refuse_out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """Raise InputError when memory runs out in this block, so that the next image, which may be smaller, is tried.

    doing: what there was not enough memory for. advice: what to do. All other errors are raised as they are.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"memory does not suffice {doing}: {advice}") from error


def release_memory() -> None:
    """Return the memory that the allocator holds in reserve to the device."""
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
