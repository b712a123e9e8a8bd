"""Two runs on one folder: each output is made by one of them alone.

A run claims an output by a lock of the operating system on a small hidden file beside it. Such a lock ends with the
process that holds it, however that ends, so a run that was killed leaves nothing claimed. Any library that locks files
leaves the file; here it is deleted, so that nothing of a run stays in the folder but its pictures.
"""

from __future__ import annotations

import errno
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from ..whole_file import cause_of, helper_file

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # another process has the lock
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # this file system knows none


@contextmanager
def claim(target: Path) -> Iterator[bool]:
    """In this block `target` is this process's to make, if True; False where another process makes it.

    Where the file system knows no locks, every process is told True. InputError where the folder of `target` cannot be
    written.
    """
    path = helper_file(target, f"{zlib.crc32(os.fsencode(target.name)):08x}", ".lock")
    try:
        descriptor = _open_locked(path)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({cause_of(error)}); give a folder that can be") from error
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        if sys.platform != "win32":  # deleted while it is still locked; on Windows an open file cannot be
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if sys.platform == "win32":
            with suppress(OSError):  # another process has opened it, and will delete it
                path.unlink(missing_ok=True)


def _open_locked(path: Path) -> int | None:
    """A descriptor of the locked file at `path`; None where another process has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        # The process that had the lock before may have deleted the file after it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock the file, without waiting. True also where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True
