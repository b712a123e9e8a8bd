"""The streams and the signals of a command: no file name, no lost terminal and no full disk ends the work."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

# What ends a command: SIGTERM, Ctrl-C, and a terminal that is closed. Windows has no SIGHUP.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class LastingStream(io.TextIOBase):
    """A text stream that can always be written to.

    When the stream behind it fails, because its reader or its terminal has gone, its disk is full, or somebody has
    closed it, everything from then on is dropped in silence. None stands for a stream that the process was started
    without.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: TextIO = stream or _nowhere()

    def write(self, text: str) -> int:
        return self._attempt("write", text) or len(text)

    def flush(self) -> None:
        self._attempt("flush")

    def isatty(self) -> bool:
        return bool(self._attempt("isatty"))

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def _attempt(self, method: str, *arguments: str) -> Any:
        """The result of a method of the stream. A stream that fails is replaced, and the result is None."""
        try:
            return getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:
            broken = self._stream
            if not isinstance(error, OSError) and not broken.closed:
                raise  # such as a character that the encoding lacks
            self._stream = _nowhere()
            # Python writes what the broken stream still holds when it exits: that must not fail either.
            with suppress(OSError, ValueError):
                os.dup2(self._stream.fileno(), broken.fileno())
            return None


@contextmanager
def lasting_streams() -> Iterator[None]:
    """In this block stdout and stderr can always be written to, by whatever library.

    Warnings of Pillow, which tell a user nothing about the picture at hand, are not shown from then on.

    Characters that their encoding lacks are shown as `\u7167`, and bytes of a file name that are no text as `\udce9`.
    Where the process was started without one of the three standard files, its number is given to the null device,
    because the next file to be opened would get it, and with it all that a library writes to stderr.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # a stream that is broken already
                stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = lasting = [LastingStream(stream) for stream in before]
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()  # what Python would write when it exits, where a failure changes the exit code
        sys.stdout, sys.stderr = before


def one_line(text: object) -> str:
    """A file name may hold line breaks and codes that steer a terminal; what stands there must not.

    Line breaks become spaces, other control characters are shown as `\\x1b`.
    """
    line = " ".join(str(text).splitlines())
    return "".join(c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) == "Cc" else c for c in line)


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Exactly one line on `stream` (stdout), at once (`one_line`)."""
    write_text(one_line(line), stream)


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Text that may have several lines on `stream` (stdout), as it is and at once."""
    print(text, file=stream or sys.stdout, flush=True)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def stop_signals() -> Iterator[None]:
    """STOP_SIGNALS raise KeyboardInterrupt in this block, once; handlers are put back afterwards.

    A launcher answers Ctrl-C with a SIGTERM of its own, and a shell and its terminal both send SIGHUP, which must not
    disturb the ending: from the first signal on only a second Ctrl-C counts. A signal that was ignored before (nohup, a
    shell's background job) stays ignored; outside the main thread, where Python takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in before:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {}
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
