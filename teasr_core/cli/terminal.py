"""Lines on stdout and stderr: no file name and no reader that has gone ends the work."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

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


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt in this block, once; handlers are put back afterwards.

    A launcher answers Ctrl-C with a SIGTERM of its own, which must not disturb the ending: from the first signal on
    SIGTERM is ignored. A second Ctrl-C still counts. A signal that was ignored before (nohup, a shell's background
    job) stays ignored; outside the main thread, where Python takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for number, handler in ((signal.SIGTERM, signal.SIG_IGN), (signal.SIGINT, signal.default_int_handler)):
            if number in before:
                signal.signal(number, handler)
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
