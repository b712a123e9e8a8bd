"""Lines on stdout and stderr: no file name and no reader that has gone ends the work."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

# What writing to a pipe that nobody reads any more says: on Linux and macOS, on Windows.
_GONE = (errno.EPIPE, errno.EINVAL)


def allow_any_name() -> None:
    r"""Show characters that stdout or stderr cannot hold as `\u7167`, and bytes that are no text as `\udce9`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_line(line: str, stream: TextIO | None = None) -> None:
    """A line on `stream` (stdout), at once. Where its reader has gone, as `head` does, it is silent from then on."""
    out: TextIO = stream or sys.stdout
    try:
        print(line, file=out, flush=True)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        _silence(out)


def _silence(stream: TextIO) -> None:
    """Let the stream, with what it still holds, end nowhere: Python writes that out when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
